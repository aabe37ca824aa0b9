"""Resource usage of a process tree while it runs: runnable threads, CPU time, memory, open files."""

import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.5


@dataclass(frozen=True)
class Sample:
    """A sample at `time` (seconds since 1970): number of runnable threads, and CPU seconds of each process so far."""

    time: float
    runnable: int
    cpu_s: Mapping[int, float]


def sample_until_exit(process: "subprocess.Popen[bytes]", on_sample: Callable[[], None] = lambda: None) -> list[Sample]:
    """Sample the process tree until the process exits. Threads that wait for a core count as runnable, so that other
    work on the machine changes little."""
    result = []
    while process.poll() is None:
        pids = tree(process.pid)
        result.append(Sample(time.time(), sum(map(_runnable, pids)), {pid: _cpu_s(pid) for pid in pids}))
        on_sample()
        time.sleep(POLL_S)
    return result


def idle_share(samples: Sequence[Sample], start: float, end: float, cores: int) -> float:
    """Return the share of `cores` without a runnable thread of the tree between two times."""
    counts = [min(sample.runnable, cores) for sample in samples if start <= sample.time <= end]
    return 1 - sum(counts) / (cores * len(counts))


def cpu_seconds(samples: Sequence[Sample]) -> float:
    """Return the CPU seconds of all processes; what each used after its last sample is not included."""
    return sum({pid: seconds for sample in samples for pid, seconds in sample.cpu_s.items() if seconds}.values())


def tree(root: int) -> list[int]:
    """Return the process ids of a process and all its descendants."""
    children = defaultdict[int, list[int]](list)
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            children[int(_stat(path)[1])].append(int(path.name))
    return list(_below(root, children))


def _below(root: int, children: Mapping[int, list[int]]) -> Iterator[int]:
    yield root
    for child in children.get(root, ()):
        yield from _below(child, children)


def _runnable(pid: int) -> int:
    count = 0
    for path in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            count += _stat(path)[0] == "R"
    return count


def _cpu_s(pid: int) -> float:
    with suppress(OSError):
        return sum(map(int, _stat(Path(f"/proc/{pid}"))[11:13])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _stat(path: Path) -> list[str]:
    """Return the fields of `stat` after the process name: state, parent, and so on."""
    return (path / "stat").read_text().rpartition(")")[2].split()


def command_of(pid: int) -> str:
    """Return the command line; empty if the process has exited."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def memory_MiB(pid: int) -> float:
    """Return the private resident memory in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
