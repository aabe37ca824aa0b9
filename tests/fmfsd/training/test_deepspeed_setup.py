"""DeepSpeed's start in a worker: nothing is compiled for it, and its log is ours."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.deepspeed import needs_deepspeed
from tests.helpers.processes import run_command
from tests.helpers.runs import make_run, tiny_config

pytestmark = pytest.mark.usefixtures("processes")


@needs_deepspeed
def test_a_worker_with_deepspeed_needs_no_compiler_and_logs_only_its_own_words(tiny_root: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_root, "engine.name=deepspeed", "engine.zero_stage=2", "train.max_steps=1")
    run = make_run(tmp_path / "run", config)
    extensions = tmp_path / "extensions"
    # LOCAL_SIZE is set by DeepSpeed's launcher: with it the extension leaves 66 MiB a worker in /dev/shm
    surroundings = {"PATH": "", "TORCH_EXTENSIONS_DIR": str(extensions), "LOCAL_SIZE": "1"}
    answer = run_command("fmfsd", "train", str(run.path), cwd=tmp_path, env=surroundings)
    assert answer.returncode == 0, answer.stderr
    lines = (answer.stdout + answer.stderr).splitlines()
    assert len(lines) >= 2
    assert [line for line in lines if not re.match(r"\d{4}-\d\d-\d\d [\d:,]+ INFO ", line)] == []
    assert not extensions.exists()


def test_all_of_a_worker_but_its_engine_is_imported_without_deepspeed() -> None:
    program = "import sys, fmfsd, fmfsd.cli, fmfsd.worker, fmfsd.training.trainer; print('deepspeed' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"
