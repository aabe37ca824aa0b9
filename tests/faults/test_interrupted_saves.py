"""Whatever call of a save is the process's last, or fails: one whole checkpoint is left. The faults are strace's."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from tests.helpers.leaks import CHECKOUT
from tests.helpers.writer import checkpoints, saved

DEADLINE_S = 60.0
SCRATCH = r"FOLDER/\.tmp-step-00000002-PID"
COMMIT = rf'rename\("{SCRATCH}", "FOLDER/step-00000002"\)'
NEEDED = r"it needs \d+\.\d MiB, .* MiB and \d+ files are free: make room for "
MAY_FAIL = ("mkdir", "openat", "write", "fsync", "rename")
LEAST_CALLS, LEAST_THAT_MAY_FAIL = 60, 30
"""CPython 3.11 and 3.12 make 92 and 33; far fewer would mean that strace did not see the protocol."""


@dataclass(frozen=True)
class Call:
    """The `number`th of this `name`, from 1; in its `text` FOLDER has the checkpoints, and PID is the process."""

    name: str
    number: int
    text: str


@dataclass(frozen=True)
class Case:
    """One save: where, its exit code, what it said at its end unless it was killed, and its traced calls."""

    folder: Path
    code: int
    said: str
    calls: list[Call]


class Saves:
    """Traced saves of step 2, each beside a step 1 in a folder of its own, by processes that `writer` forks."""

    def __init__(self, scratch: Path, writer: "subprocess.Popen[str]") -> None:
        self._scratch, self._writer, self._numbers = scratch, writer, count()
        (scratch / "first").mkdir()
        checkpoints(scratch / "first").write(saved(1))
        self.paths: list[str] = []
        """Traced are the calls that touch one of these; without any, all calls."""

    def save(self, *options: str) -> Case:
        """With strace's `options`."""
        number = next(self._numbers)
        folder, log = self._scratch / f"{number}", self._scratch / f"{number}.strace"
        shutil.copytree(self._scratch / "first", folder)
        self._say(str(folder))
        pid = self._hear()
        paths = [f"--trace-path={path.replace('PID', pid).replace('FOLDER', str(folder))}" for path in self.paths]
        self._trace(["strace", "-f", "-y", "-o", str(log), "-p", pid, *options, *paths], int(pid))
        *said, code = iter(self._hear, "")
        trace = re.sub(rf"\b{pid}\b", "PID", log.read_text().replace(str(folder), "FOLDER"))
        return Case(folder, int(code), "".join(said), list(_calls(trace)))

    def _trace(self, strace: list[str], pid: int) -> None:
        """Attach, let the save begin, and wait for its end. PermissionError if processes can't be traced."""
        with subprocess.Popen(strace, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr is not None
            if "attached" not in (answer := tracer.stderr.readline()):
                raise PermissionError(answer)
            self._say("go")
            try:
                tracer.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                os.kill(pid, signal.SIGKILL)
                raise

    def _say(self, text: str) -> None:
        assert self._writer.stdin is not None
        self._writer.stdin.write(f"{text}\n")
        self._writer.stdin.flush()

    def _hear(self) -> str:
        assert self._writer.stdout is not None
        return self._writer.stdout.readline().rstrip("\n")


def _calls(trace: str) -> Iterator[Call]:
    numbers: Counter[str] = Counter()
    for line in trace.splitlines():
        if match := re.fullmatch(r"PID +(\w+)(\(.*)", line):
            numbers[match[1]] += 1
            yield Call(match[1], numbers[match[1]], match[1] + match[2])


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saves]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.writer"],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Saves(tmp_path_factory.mktemp("saves"), writer)
    finally:
        writer.communicate()


@pytest.fixture(scope="module")
def protocol(saves: Saves) -> list[Call]:
    """The calls of a save that nothing disturbs, of those that touch the checkpoints."""
    try:
        everything = saves.save("-e", "trace=file,desc")
    except PermissionError as error:
        pytest.skip(f"processes can't be traced here: {error}")
    saves.paths = sorted({path for call in everything.calls for path in re.findall(r'FOLDER[^">]*', call.text)})
    case = saves.save()
    assert (case.code, case.said) == (0, "saved")
    return case.calls


def last(calls: list[Call], pattern: str) -> int:
    """Where the last call stands whose text begins so."""
    return max(place for place, call in enumerate(calls) if re.match(pattern, call.text))


def assert_whole(case: Case, step: int, call: Call) -> None:
    """A start after the fault finds that step as it was saved, and clears away what was left half done."""
    folder, expected = checkpoints(case.folder), saved(step)
    assert folder.newest() == expected.position.folder_name, (call, case.said)
    assert folder.read(expected.position.folder_name).contents() == expected.contents(), call
    assert not list(case.folder.glob(".tmp-*")), call


@pytest.mark.fault("F13")
def test_what_a_checkpoint_is_made_of_is_on_the_disk_before_it_has_its_name(protocol: list[Call]) -> None:
    before = protocol[: last(protocol, COMMIT)]
    written = {found[1] for call in before if (found := re.match(r"write\(\d+<(.+?)>", call.text))}
    assert len(written) == 4
    for path in map(re.escape, written):
        write, flush = (last(before, rf"{name}\(\d+<{path}>") for name in ("write", "fsync"))
        assert write < flush < last(before, rf'rename\("{path}"')
    assert last(before, "rename") < last(before, rf"fsync\(\d+<{SCRATCH}>\)")


def test_an_old_checkpoint_goes_when_the_new_ones_name_is_on_the_disk(protocol: list[Call]) -> None:
    goes = last(protocol, 'rename\\("FOLDER/step-00000001"')
    assert last(protocol, COMMIT) < last(protocol, r"fsync\(\d+<FOLDER>\)") < goes < last(protocol, "unlink")


@pytest.mark.fault("F12")
def test_a_save_that_is_killed_at_any_call_leaves_one_whole_checkpoint(saves: Saves, protocol: list[Call]) -> None:
    """Until the rename is done it is the old one, and then the new one."""
    assert len(protocol) >= LEAST_CALLS
    for place, call in enumerate(protocol):
        case = saves.save("-e", f"inject={call.name}:signal=SIGKILL:when={call.number}")
        assert (case.code, case.said, len(case.calls)) == (-signal.SIGKILL, "", place + 1), call
        assert_whole(case, 2 if place > last(protocol, COMMIT) else 1, call)


@pytest.mark.fault("F11")
@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EDQUOT", "EROFS"])
def test_a_save_tells_of_a_call_that_fails_from_then_on_and_leaves_one_whole_checkpoint(
    error: str, saves: Saves, protocol: list[Call]
) -> None:
    """Of a full disk, also what is missing. That an old one can't be removed does not make the new one less saved."""
    told = "CheckpointError: .*" + (NEEDED if error in ("ENOSPC", "EDQUOT") else "")
    faulty = [(place, call) for place, call in enumerate(protocol) if call.name in MAY_FAIL]
    assert len(faulty) >= LEAST_THAT_MAY_FAIL
    for place, call in faulty:
        case = saves.save("-e", f"inject={call.name}:error={error}:when={call.number}+")
        assert re.search(f"= -1 {error} .*INJECTED", case.calls[place].text), call
        is_saved = place > last(protocol, r"fsync\(\d+<FOLDER>\)")
        assert re.match("saved" if is_saved else told, case.said), (call, case.said)
        assert_whole(case, 2 if place > last(protocol, COMMIT) else 1, call)


@pytest.mark.parametrize("error", ["EINVAL", "EOPNOTSUPP"])
def test_a_file_system_that_can_not_flush_a_folder_takes_checkpoints(
    error: str, saves: Saves, protocol: list[Call]
) -> None:
    case = saves.save("-e", f"inject=fsync:error={error}")
    assert [call for call in case.calls if call.name == "fsync" and f"{error} " in call.text], "injected"
    assert case.said == "saved"
    assert_whole(case, 2, case.calls[-1])
