"""The documentation: the README's first command, its length and links, and directory trees that match the real one."""

import re
from pathlib import Path

import pytest

from fmfsd.config import preset_names
from tests.helpers.processes import run_command

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("[!.]*/README.md")), ROOT / "tests" / "benchmarks" / "RESULTS.md"]
SOURCES = (".py", ".yaml", ".cpp", ".h", ".css", ".js")


def first_command() -> list[str]:
    """Return the arguments of the launch at the end of the README's first command."""
    (command, *_) = re.findall(r"^.*?bin/fmfsd-launch (.*)$", README.read_text(), re.MULTILINE)
    return str(command).split()


def test_the_first_command_trains_in_an_empty_folder(tmp_path: Path) -> None:
    """Two node agents, built-in data; every head learns it above 90%."""
    arguments = first_command()
    assert arguments == ["smoke", "--nodes", "2", "--gpus", "1"]
    answer = run_command("fmfsd-launch", *arguments, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert re.search(rf"^run: {tmp_path}/runs/smoke-\S+$", answer.stdout, re.MULTILINE)
    accuracies = dict(re.findall(r"│ (\w+) +│ +([\d.]+)% +│", answer.stdout))
    assert set(accuracies) == {"branch1", "fused", "deepest", "ensemble"}
    assert all(float(accuracy) > 90 for accuracy in accuracies.values())
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "logs" / "node-0" / "rank-0.log").exists()
    assert (run / "logs" / "node-1" / "rank-1.log").exists()


@pytest.mark.parametrize("package", ["fmfsd", "launcher"])
def test_the_tree_of_a_package_is_the_real_one(package: str) -> None:
    text = (ROOT / package / "README.md").read_text()
    block = text.partition("## Packages\n\n```\n")[2].partition("\n```")[0]
    lines = re.sub(r"\n +", " ", block).splitlines()
    tree = {line.split()[0]: set(line.rpartition(": ")[2].split()) for line in lines}
    assert tree == {f"{folder.relative_to(ROOT)}/": files for folder, files in real_tree(ROOT / package)}


def real_tree(package: Path) -> list[tuple[Path, set[str]]]:
    folders = [package, *(path for path in package.rglob("*") if path.is_dir() and path.name != "__pycache__")]
    return [
        (folder, {name_of(path) for path in folder.iterdir() if path.suffix in SOURCES} - {"__init__"})
        for folder in folders
    ]


def name_of(path: Path) -> str:
    return path.stem if path.suffix == ".py" else path.name


def test_the_readme_is_one_page() -> None:
    assert len(README.read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).is_file()] == []


def test_every_preset_is_documented() -> None:
    text = (ROOT / "fmfsd" / "README.md").read_text()
    assert [name for name in preset_names() if f"`{name}`" not in text] == []
