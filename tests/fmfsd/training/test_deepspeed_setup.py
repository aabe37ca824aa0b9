"""Start of DeepSpeed in a worker: nothing is compiled, and the log has our format."""

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
def test_a_worker_with_deepspeed_needs_no_compiler_and_logs_in_our_format(tiny_root: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_root, "engine.name=deepspeed", "engine.zero_stage=2", "train.max_steps=1")
    run = make_run(tmp_path / "run", config)
    extensions = tmp_path / "extensions"
    # DeepSpeed's launcher sets LOCAL_SIZE: with it the extension leaves 66 MiB per worker in /dev/shm
    environment = {"PATH": "", "TORCH_EXTENSIONS_DIR": str(extensions), "LOCAL_SIZE": "1"}
    completed = run_command("fmfsd", "train", str(run.path), cwd=tmp_path, env=environment)
    assert completed.returncode == 0, completed.stderr
    lines = (completed.stdout + completed.stderr).splitlines()
    assert len(lines) >= 2
    assert [line for line in lines if not re.match(r"\d{4}-\d\d-\d\d [\d:,]+ INFO ", line)] == []
    assert not extensions.exists()


def test_a_workers_modules_except_its_engine_do_not_import_deepspeed() -> None:
    program = "import sys, fmfsd, fmfsd.cli, fmfsd.worker, fmfsd.training.trainer; print('deepspeed' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"
