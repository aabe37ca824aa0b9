"""A built wheel in a fresh environment: it contains presets, spaces and batch scripts, which are found by name."""

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
    """Return the bin folder of an environment with our wheel, on top of the dependencies installed for the tests.

    Neither pip nor a package index is needed: the test environment contains the build backend.
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
    """Install the wheel like pip: unpack it, and write a script for each entry point."""
    with ZipFile(wheel) as archive:
        archive.extractall(site)
    (distribution,) = distributions(name="fmfsd", path=[str(site)])
    for entry in distribution.entry_points.select(group="console_scripts"):
        script = scripts / entry.name
        script.write_text(f"#!{scripts / 'python'}\nfrom {entry.module} import {entry.attr}\n{entry.attr}()\n")
        script.chmod(0o755)


def output_of(fresh: Path, folder: Path, *argv: str) -> str:
    answer = subprocess.run([fresh / argv[0], *argv[1:]], cwd=folder, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_the_code_comes_from_the_wheel_and_not_from_the_checkout(fresh: Path, tmp_path: Path) -> None:
    where = output_of(
        fresh, tmp_path, "python", "-c", "import fmfsd, launcher; print(fmfsd.__file__, launcher.__file__)"
    )
    assert where.count(str(fresh.parent)) == 2


def test_presets_and_spaces_are_found_by_name(fresh: Path, tmp_path: Path) -> None:
    plan = output_of(fresh, tmp_path, "fmfsd-launch", "cifar100-resnet8", "--dry-run")
    assert "torch.distributed.run" in plan
    assert "4 trials over smoke" in output_of(fresh, tmp_path, "fmfsd-tune", "--space", "smoke", "--dry-run")
    assert "Prepare and verify" in output_of(fresh, tmp_path, "fmfsd", "--help")


def test_the_wheel_contains_every_packaged_file_unchanged(fresh: Path, tmp_path: Path) -> None:
    code = "from launcher.config.packaged_files import packaged_folder; import sys; print(packaged_folder(sys.argv[1]))"
    for name in ("tune_spaces", "cluster"):
        folder = Path(output_of(fresh, tmp_path, "python", "-c", code, name).strip())
        assert folder.is_relative_to(fresh.parent)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in (CHECKOUT / name).iterdir()
        }


def test_the_kernel_is_compiled_from_the_source_in_the_wheel(fresh: Path, tmp_path: Path) -> None:
    kernel = "fmfsd.cpu.spatial_kernel.supports(torch.zeros(1, 1, 1, 1), torch.zeros(1))"
    code = f"import torch, fmfsd.cpu.spatial_kernel; print({kernel})"
    assert output_of(fresh, tmp_path, "python", "-c", code) == "True\n"
