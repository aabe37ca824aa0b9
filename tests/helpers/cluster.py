"""Several hosts on this machine: namespaces with names, addresses and networks of their own, that share its files."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.leaks import TEST_ID
from tests.helpers.processes import Launched, launched

SCRIPT = Path(__file__).parents[1] / "slurm" / "cluster.sh"
_NEEDS = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "unshare", "nsenter", "flock", "ps")
_BY_SSH = ("ssh", "sshd", "ssh-keygen")


def lacks(*, ssh: bool) -> str:
    """Why there can be no hosts here; empty if there can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in (*_NEEDS, *(_BY_SSH if ssh else ())) if shutil.which(name, path=path) is None]
    return "needs root" if os.geteuid() else f"needs {', '.join(missing)}" if missing else ""


@dataclass(frozen=True)
class Cluster:
    """Hosts n1, n2, ... and this machine beside them, from which they are reached."""

    folder: Path

    def do(self, *arguments: str) -> str:
        """A sub-command of the script; what it prints. CalledProcessError.

        Hosts and daemons outlive a test, so they don't get its mark.
        """
        env = {name: value for name, value in self.env.items() if name != TEST_ID}
        return subprocess.run(self.command(*arguments), env=env, check=True, capture_output=True, text=True).stdout

    def command(self, *arguments: str) -> list[str]:
        return [str(SCRIPT), *arguments]

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "SLURM_UP_DIR": str(self.folder)}

    def on(self, host: str, *arguments: str) -> str:
        """A command on a host; what it prints."""
        return self.do("exec", host, *arguments)

    def processes(self, host: str, *parts: str) -> list[int]:
        """Those on a host whose command line has one of `parts`, by the numbers that they have there."""
        lines = (line.split(maxsplit=1) for line in self.on(host, "ps", "-axo", "pid=,args=").splitlines())
        return [int(pid) for pid, args in lines if any(part in args for part in parts)]

    def launched(
        self, cwd: Path, run_dir: str, arguments: Sequence[str], env: Mapping[str, str] | None = None
    ) -> AbstractContextManager[Launched]:
        """`fmfsd-launch ... --run-dir run_dir` on this machine, where the hosts' names are known."""
        return launched(cwd, run_dir, arguments, {**self.env, **(env or {})}, prefix=self.command("run"))


@contextmanager
def hosts_up(**settings: int | str) -> Iterator[Cluster]:
    """Up until the end of the block. `settings` as the script has them, without SLURM_UP_ and in small letters."""
    folder = Path(tempfile.mkdtemp(prefix="fmfsd-", dir="/tmp"))
    hosts = Cluster(folder)
    chosen = {f"SLURM_UP_{name.upper()}": str(value) for name, value in settings.items()}
    env = {name: value for name, value in {**hosts.env, **chosen}.items() if name != TEST_ID}
    try:
        subprocess.run(hosts.command("up"), env=env, check=True, stdout=subprocess.DEVNULL)
        yield hosts
    finally:
        hosts.do("down")
        shutil.rmtree(folder, ignore_errors=True)
