"""What the processes below one have of a machine while it runs: cores that they could use, memory, open files."""

import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.5


@dataclass(frozen=True)
class Sample:
    """At `time`, in seconds since 1970: threads that ran or wanted to, and what each process has computed so far."""

    time: float
    runnable: int
    cpu_s: Mapping[int, float]


def watched(process: "subprocess.Popen[bytes]", look: Callable[[], None] = lambda: None) -> list[Sample]:
    """Until it has ended. A thread that waits for a core counts, so that what else this machine does changes little."""
    found = []
    while process.poll() is None:
        pids = tree(process.pid)
        found.append(Sample(time.time(), sum(map(_runnable, pids)), {pid: _cpu_s(pid) for pid in pids}))
        look()
        time.sleep(LOOK_S)
    return found


def idle_share(samples: Sequence[Sample], start: float, end: float, cores: int) -> float:
    """The share of so many cores that nothing of ours was there for, between two times."""
    counts = [min(sample.runnable, cores) for sample in samples if start <= sample.time <= end]
    return 1 - sum(counts) / (cores * len(counts))


def cpu_seconds(samples: Sequence[Sample]) -> float:
    """Of all processes; what each did after the last look at it is not known."""
    return sum({pid: seconds for sample in samples for pid, seconds in sample.cpu_s.items() if seconds}.values())


def tree(root: int) -> list[int]:
    """A process and all below it."""
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
    """State, parent, and what follows the name in brackets."""
    return (path / "stat").read_text().rpartition(")")[2].split()


def command_of(pid: int) -> str:
    """Empty if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def memory_MiB(pid: int) -> float:
    """What is its own, in RAM."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
