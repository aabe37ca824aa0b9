"""The README: its first command without the installation, its tree, and its presets."""

import re
from pathlib import Path

import pytest

from tests.helpers.processes import run_command

README = Path(__file__).parents[2] / "README.md"


def first_command() -> list[str]:
    """Return the arguments of the launch at the end of the README's first command."""
    (command, *_) = re.findall(r"^.*?bin/fmfsd-launch (.*)$", README.read_text(), re.MULTILINE)
    return str(command).split()


def test_the_first_command_trains_in_an_empty_folder(tmp_path: Path) -> None:
    """Two node agents, built-in data; every head reaches more than 90% accuracy."""
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


def test_the_tree_in_the_readme_is_complete() -> None:
    text = README.read_text()
    tree = text[text.index("## The tree") :]
    tree = tree[: tree.index("\n## ", 3)]
    root = README.parent
    for package in ("fmfsd", "launcher"):
        modules = {path.stem for path in (root / package).glob("*.py") if not path.stem.startswith("__")}
        folders = {path.name for path in (root / package).iterdir() if path.is_dir() and not path.name.startswith("__")}
        missing = {name for name in modules | folders if not re.search(rf"\b{name}\b", tree)}
        assert not missing, f"{package}: {missing} not in the README's tree"


@pytest.mark.parametrize(
    "name", ["smoke", "cifar100-resnet18", "cifar100-resnet18-b2048", "cifar100-resnet8", "cifar10-resnet18"]
)
def test_every_preset_that_the_readme_names_exists(name: str) -> None:
    from fmfsd.config import preset_names

    assert name in README.read_text()
    assert name in preset_names()
