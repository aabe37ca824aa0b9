"""A built wheel in a fresh environment: presets, spaces and batch scripts come along and are found by name."""

import subprocess
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path
from zipfile import ZipFile

import pytest

CHECKOUT = Path(__file__).parents[2]
BUILD = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with our wheel, over the dependencies that are installed for the tests.

    Neither pip nor an index is needed: the tests' own environment has the build backend.
    """
    pytest.importorskip("hatchling", reason="needs hatchling, which the extra dev brings")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", BUILD, folder], cwd=CHECKOUT, check=True)
    (wheel,) = folder.glob("fmfsd-*.whl")
    environment = folder / "fresh"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    install(wheel, site, environment / "bin")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


def install(wheel: Path, site: Path, scripts: Path) -> None:
    """As an installer does it: unpack the wheel, and write a script for each of its entry points."""
    with ZipFile(wheel) as archive:
        archive.extractall(site)
    (distribution,) = distributions(name="fmfsd", path=[str(site)])
    for entry in distribution.entry_points.select(group="console_scripts"):
        script = scripts / entry.name
        script.write_text(f"#!{scripts / 'python'}\nfrom {entry.module} import {entry.attr}\n{entry.attr}()\n")
        script.chmod(0o755)


def ask(fresh: Path, folder: Path, *words: str) -> str:
    answer = subprocess.run([fresh / words[0], *words[1:]], cwd=folder, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_the_code_is_the_wheels_and_not_the_checkouts(fresh: Path, tmp_path: Path) -> None:
    where = ask(fresh, tmp_path, "python", "-c", "import fmfsd, launcher; print(fmfsd.__file__, launcher.__file__)")
    assert where.count(str(fresh.parent)) == 2


def test_presets_and_spaces_are_found_by_name(fresh: Path, tmp_path: Path) -> None:
    plan = ask(fresh, tmp_path, "fmfsd-launch", "cifar100-resnet8", "--dry-run")
    assert "torch.distributed.run" in plan
    assert "4 trials over smoke" in ask(fresh, tmp_path, "fmfsd-tune", "--space", "smoke", "--dry-run")
    assert "Prepare and verify" in ask(fresh, tmp_path, "fmfsd", "--help")


def test_every_shipped_file_is_in_the_wheel_as_it_is_here(fresh: Path, tmp_path: Path) -> None:
    code = "from launcher.config.packaged_files import shipped_folder; import sys; print(shipped_folder(sys.argv[1]))"
    for name in ("tune_spaces", "cluster"):
        folder = Path(ask(fresh, tmp_path, "python", "-c", code, name).strip())
        assert folder.is_relative_to(fresh.parent)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in (CHECKOUT / name).iterdir()
        }


def test_the_kernel_is_compiled_from_the_wheels_source(fresh: Path, tmp_path: Path) -> None:
    code = (
        "import torch; from fmfsd.cpu.spatial_kernel import takes;print(takes(torch.zeros(1, 1, 1, 1), torch.zeros(1)))"
    )
    assert ask(fresh, tmp_path, "python", "-c", code) == "True\n"
