"""A real run by a user without an account or a home directory, with a long path of the temporary folder."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from tests.helpers.launches import tiny_arguments
from tests.helpers.processes import command
from tests.helpers.users import common_folder

NOBODY = 54_321
_CAPABILITIES = "+dac_override,+dac_read_search"
"""Needed to run this Python from any folder."""
AS_NOBODY = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *(f"--inh-caps={_CAPABILITIES}", f"--ambient-caps={_CAPABILITIES}"),
)


@pytest.mark.fault("F62")
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
def test_a_user_without_home_and_name_can_train_and_only_the_run_is_written(tiny_root: Path) -> None:
    with common_folder() as folder:
        work, temporary = folder / "work", folder / ("t" * 120) / ("t" * 120)
        shutil.copytree(tiny_root / "cifar10", work / "root" / "cifar10")
        caches = temporary / f"fmfsd-cache-{NOBODY}"
        arguments = tiny_arguments(work / "root", "train.max_steps=2", workers=(1,))
        shutil.copytree(Path(os.environ["XDG_CACHE_HOME"], "fmfsd"), caches / "fmfsd")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        caches.chmod(0o700)
        env = {"PATH": os.environ["PATH"], "TMPDIR": str(temporary), "FMFSD_TEST_ID": os.environ["FMFSD_TEST_ID"]}
        launch = (*AS_NOBODY, command("fmfsd-launch"), *arguments, "--device", "cpu", "--run-dir", "run")
        done = subprocess.run(launch, cwd=work, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        why = f"HOME is not set, and this machine does not know user {NOBODY}"
        assert [line for line in done.stdout.splitlines() if "caches" in line] == [
            f"warning: caches are in {caches}, because {why}"
        ]
        assert read_json(RunDir(work / "run").outcome)["state"] == "finished"
        assert sorted(path.name for path in work.iterdir()) == ["root", "run"]
