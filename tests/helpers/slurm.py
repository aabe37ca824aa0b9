"""A real Slurm cluster of two simulated hosts on this machine, and its jobs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmfsd.run.run_dir import RunDir
from launcher.transport import slurm_commands
from launcher.transport.slurm_job_state import JobState
from tests.helpers.cluster import Cluster
from tests.helpers.processes import DEADLINE_S, run_command, wait_until

SETTINGS: dict[str, int | str] = {
    "nodes": 2,
    "cpus": 4,
    "gpus": 2,
    "gpu_type": "a100",
    "killwait": 30,  # Slurm's default: on two busy cores saving can take long
    "requeue": 5,  # Slurm treats smaller values as 120
}
POLL_SLURM_S = 0.25


@dataclass(frozen=True)
class SlurmJob:
    """A job submitted with `fmfsd-launch` to `cluster`."""

    cluster: "SlurmCluster"
    id: str
    run: RunDir

    @property
    def state(self) -> JobState:
        state = slurm_commands.query_job_state(self.id)
        assert state is not None, f"Slurm no longer knows job {self.id}"
        return state

    @property
    def log_text(self) -> str:
        logs = sorted(self.run.logs.glob("slurm-*.log"))
        return "".join(log.read_text(errors="replace") for log in logs)

    @property
    def restarts(self) -> int:
        text = subprocess.run(["scontrol", "show", "job", self.id], capture_output=True, text=True, check=True).stdout
        return int(text.partition(" Restarts=")[2].split()[0])

    def progress(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.run.rank_progress(0).read_text()))
        except (OSError, ValueError):
            return {}

    def wait_for_file(self, path: Path) -> None:
        self._wait_until(path.exists, str(path))

    def wait_for_step(self, step: int, *, attempt: int = 1) -> None:
        def is_reached() -> bool:
            progress = self.progress()
            return bool(progress.get("attempt", 0) >= attempt and progress.get("step", -1) >= step)

        self._wait_until(is_reached, f"step {step} of attempt {attempt}")

    def wait_for_restart(self, number: int) -> None:
        """Wait until Slurm itself has restarted the job; a manual release a few seconds earlier would fail."""

        def is_restarted() -> bool:
            return self.restarts >= number and self.state.state == "RUNNING"

        self._wait_until(is_restarted, f"restart {number}", every_s=POLL_SLURM_S)

    def resume_step_after_restart(self, number: int) -> int:
        """Wait until the job has been restarted and has made a step; return the step from which it resumed."""
        self.wait_for_restart(number)
        self.wait_for_step(1, attempt=self.run.last_attempt() + 1)
        return int(self.progress()["went_on_after"])

    def _wait_until(self, condition: Callable[[], bool], what: str, *, every_s: float = 0.05) -> None:
        """Wait for `condition`; fail if the job ends before. Slurm is polled less often: a query costs 30 ms of CPU."""
        deadline, next_query = time.monotonic() + DEADLINE_S, 0.0
        while not condition():
            if time.monotonic() >= next_query:
                state, next_query = self.state, time.monotonic() + 4 * POLL_SLURM_S
                assert not state.is_over, f"{what} of job {self.id}: {state}\n{self.log_text}"
                assert time.monotonic() < deadline, (
                    f"{what} of job {self.id}: not within {DEADLINE_S:g} s\n{self.log_text}"
                )
            time.sleep(every_s)

    def wait_for_end(self) -> JobState:
        """Wait for the end of the job and return its final state."""
        deadline = time.monotonic() + DEADLINE_S
        while not (state := self.state).is_over:
            assert time.monotonic() < deadline, f"{state}\n{self.log_text}"
            time.sleep(POLL_SLURM_S)
        return state


@dataclass(frozen=True)
class SlurmCluster(Cluster):
    """Hosts n1 and n2 with their own Slurm controller."""

    def cancel_all_jobs(self) -> None:
        """Cancel all jobs and wait until the queue is empty."""
        subprocess.run(["scancel", "--me"], check=True)
        wait_until(lambda: not self._queue(), "the jobs to end")

    def _queue(self) -> str:
        time.sleep(0.1)
        return subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout

    @property
    def configuration(self) -> str:
        return str(self.folder / "slurm.conf")

    def submit(self, cwd: Path, run_dir: str, *arguments: str, env: Mapping[str, str] | None = None) -> SlurmJob:
        options = ("--on", "slurm", "--device", "cpu", "--run-dir", run_dir, "--json")
        completed = run_command("fmfsd-launch", *arguments, *options, cwd=cwd, env=env)
        assert completed.returncode == 0, completed.stderr
        submitted = json.loads(completed.stdout)
        return SlurmJob(self, submitted["job"], RunDir(Path(submitted["run_dir"])))

    def set_down(self, host: str) -> None:
        """Set the node to DOWN, until its slurmd, which still runs, registers again."""
        subprocess.run(["scontrol", "update", f"nodename={host}", "state=down", "reason=test"], check=True)

    @contextmanager
    def without_python(self, host: str) -> Iterator[None]:
        """Make Python fail on the host, so that no agent starts there, until the end of the block."""
        python = os.path.realpath(sys.executable)
        self.run_on(host, "mount", "--bind", "/bin/false", python)
        try:
            yield
        finally:
            self.run_on(host, "umount", python)

    def signal_worker(self, job: SlurmJob, rank: int, name: str) -> None:
        """Send a signal to a worker of a job with one worker on each of n1 and n2; its pid is that of its namespace."""
        pid = json.loads(job.run.rank_progress(rank).read_text())["pid"]
        self.run_on(f"n{rank + 1}", "kill", f"-{name}", str(pid))
