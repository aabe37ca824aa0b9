"""Several hosts simulated on this machine: namespaces with their own host names and networks, and shared files."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.leaks import TEST_ID
from tests.helpers.processes import LaunchProcess, start_launch

SCRIPT = Path(__file__).parents[1] / "slurm" / "cluster.sh"
_NEEDS = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "unshare", "nsenter", "flock", "ps")
_NEEDS_FOR_SSH = ("ssh", "sshd", "ssh-keygen")


def cluster_skip_reason(*, ssh: bool) -> str:
    """Return the reason why this machine cannot simulate hosts, or an empty string."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in (*_NEEDS, *(_NEEDS_FOR_SSH if ssh else ())) if shutil.which(name, path=path) is None]
    return "needs root" if os.geteuid() else f"needs {', '.join(missing)}" if missing else ""


@dataclass(frozen=True)
class Cluster:
    """Hosts n1, n2, ..., reached from this machine."""

    folder: Path

    def run_script(self, *arguments: str) -> str:
        """Run a sub-command of the script and return what it prints. Raise CalledProcessError if it fails.

        Hosts and daemons outlive a test, so TEST_ID is not passed to them.
        """
        env = {name: value for name, value in self.env.items() if name != TEST_ID}
        return subprocess.run(self.command(*arguments), env=env, check=True, capture_output=True, text=True).stdout

    def command(self, *arguments: str) -> list[str]:
        return [str(SCRIPT), *arguments]

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "SLURM_UP_DIR": str(self.folder)}

    def run_on(self, host: str, *arguments: str) -> str:
        """Run a command on a host and return what it prints."""
        return self.run_script("exec", host, *arguments)

    def processes(self, host: str, *parts: str) -> list[int]:
        """Return the pids on the host of processes whose command line contains one of `parts`."""
        lines = (line.split(maxsplit=1) for line in self.run_on(host, "ps", "-axo", "pid=,args=").splitlines())
        return [int(pid) for pid, args in lines if any(part in args for part in parts)]

    def start_launch(
        self, cwd: Path, run_dir: str, arguments: Sequence[str], env: Mapping[str, str] | None = None
    ) -> AbstractContextManager[LaunchProcess]:
        """Start `fmfsd-launch ... --run-dir run_dir` on this machine, in a namespace that resolves the hosts' names."""
        return start_launch(cwd, run_dir, arguments, {**self.env, **(env or {})}, prefix=self.command("run"))


@contextmanager
def hosts_up(**settings: int | str) -> Iterator[Cluster]:
    """Run hosts until the end of the block. `settings` are the script's variables in lower case, without SLURM_UP_."""
    folder = Path(tempfile.mkdtemp(prefix="fmfsd-", dir="/tmp"))
    cluster = Cluster(folder)
    variables = {f"SLURM_UP_{name.upper()}": str(value) for name, value in settings.items()}
    env = {name: value for name, value in {**cluster.env, **variables}.items() if name != TEST_ID}
    try:
        subprocess.run(cluster.command("up"), env=env, check=True, stdout=subprocess.DEVNULL)
        yield cluster
    finally:
        cluster.run_script("down")
        shutil.rmtree(folder, ignore_errors=True)
