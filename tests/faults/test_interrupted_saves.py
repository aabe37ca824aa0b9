"""Interrupted saves: a kill or an error at any system call leaves one valid checkpoint; strace injects the faults."""

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
from tests.helpers.writer import make_checkpoint, open_store

DEADLINE_S = 60.0
SCRATCH = r"FOLDER/\.tmp-step-00000002-PID"
COMMIT = rf'rename\("{SCRATCH}", "FOLDER/step-00000002"\)'
NEEDED = r"it needs \d+\.\d MiB, .* MiB and \d+ files are free: make room for "
MAY_FAIL = ("mkdir", "openat", "write", "fsync", "rename")
LEAST_CALLS, LEAST_THAT_MAY_FAIL = 60, 30
"""CPython 3.11 and 3.12 make 92 and 33; far fewer would mean that strace missed the calls of the save."""


@dataclass(frozen=True)
class Call:
    """The `number`th system call (from 1) of this `name`. FOLDER in `text`: the checkpoint folder; PID: the process."""

    name: str
    number: int
    text: str


@dataclass(frozen=True)
class Case:
    """One save: its folder, exit code, final message (empty if it was killed) and traced calls."""

    folder: Path
    code: int
    message: str
    calls: list[Call]


class Saves:
    """Runs traced saves of step 2 in processes forked by `writer`, each in its own folder that contains step 1."""

    def __init__(self, scratch: Path, writer: "subprocess.Popen[str]") -> None:
        self._scratch, self._writer, self._numbers = scratch, writer, count()
        (scratch / "first").mkdir()
        open_store(scratch / "first").write(make_checkpoint(1))
        self.paths: list[str] = []
        """Only calls that touch one of these paths are traced; if empty, all calls."""

    def save(self, *options: str) -> Case:
        """Run one save under strace with `options`."""
        number = next(self._numbers)
        folder, log = self._scratch / f"{number}", self._scratch / f"{number}.strace"
        shutil.copytree(self._scratch / "first", folder)
        self._send(str(folder))
        pid = self._receive()
        paths = [f"--trace-path={path.replace('PID', pid).replace('FOLDER', str(folder))}" for path in self.paths]
        self._trace(["strace", "-f", "-y", "-o", str(log), "-p", pid, *options, *paths], int(pid))
        *message, code = iter(self._receive, "")
        trace = re.sub(rf"\b{pid}\b", "PID", log.read_text().replace(str(folder), "FOLDER"))
        return Case(folder, int(code), "".join(message), list(_calls(trace)))

    def _trace(self, strace: list[str], pid: int) -> None:
        """Attach strace, start the save, and wait for its end. PermissionError if processes can't be traced."""
        with subprocess.Popen(strace, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr is not None
            if "attached" not in (answer := tracer.stderr.readline()):
                raise PermissionError(answer)
            self._send("go")
            try:
                tracer.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                os.kill(pid, signal.SIGKILL)
                raise

    def _send(self, text: str) -> None:
        assert self._writer.stdin is not None
        self._writer.stdin.write(f"{text}\n")
        self._writer.stdin.flush()

    def _receive(self) -> str:
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
    """Return the calls of an undisturbed save that touch the checkpoint folder."""
    try:
        everything = saves.save("-e", "trace=file,desc")
    except PermissionError as error:
        pytest.skip(f"processes can't be traced here: {error}")
    saves.paths = sorted({path for call in everything.calls for path in re.findall(r'FOLDER[^">]*', call.text)})
    case = saves.save()
    assert (case.code, case.message) == (0, "saved")
    return case.calls


def last(calls: list[Call], pattern: str) -> int:
    """Return the index of the last call whose text starts with `pattern`."""
    return max(index for index, call in enumerate(calls) if re.match(pattern, call.text))


def assert_whole(case: Case, step: int, call: Call) -> None:
    """Assert that `step` is the newest valid checkpoint after the fault, and that partial files are removed."""
    folder, expected = open_store(case.folder), make_checkpoint(step)
    assert folder.find_newest() == expected.position.folder_name, (call, case.message)
    assert folder.load(expected.position.folder_name).to_files() == expected.to_files(), call
    assert not list(case.folder.glob(".tmp-*")), call


@pytest.mark.fault("F13")
def test_a_checkpoint_is_fsynced_before_it_is_renamed(protocol: list[Call]) -> None:
    before = protocol[: last(protocol, COMMIT)]
    written = {match[1] for call in before if (match := re.match(r"write\(\d+<(.+?)>", call.text))}
    assert len(written) == 4
    for path in map(re.escape, written):
        write, flush = (last(before, rf"{name}\(\d+<{path}>") for name in ("write", "fsync"))
        assert write < flush < last(before, rf'rename\("{path}"')
    assert last(before, "rename") < last(before, rf"fsync\(\d+<{SCRATCH}>\)")


def test_an_old_checkpoint_is_removed_after_the_rename_of_the_new_one_is_fsynced(protocol: list[Call]) -> None:
    removal = last(protocol, 'rename\\("FOLDER/step-00000001"')
    assert last(protocol, COMMIT) < last(protocol, r"fsync\(\d+<FOLDER>\)") < removal < last(protocol, "unlink")


@pytest.mark.fault("F12")
def test_a_save_killed_at_any_system_call_leaves_one_valid_checkpoint(saves: Saves, protocol: list[Call]) -> None:
    """Before the rename it is the old checkpoint, afterwards the new one."""
    assert len(protocol) >= LEAST_CALLS
    for index, call in enumerate(protocol):
        case = saves.save("-e", f"inject={call.name}:signal=SIGKILL:when={call.number}")
        assert (case.code, case.message, len(case.calls)) == (-signal.SIGKILL, "", index + 1), call
        assert_whole(case, 2 if index > last(protocol, COMMIT) else 1, call)


@pytest.mark.fault("F11")
@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EDQUOT", "EROFS"])
def test_a_save_reports_a_failing_system_call_and_leaves_one_valid_checkpoint(
    error: str, saves: Saves, protocol: list[Call]
) -> None:
    """For a full disk the error names the missing space. Failing to remove an old checkpoint is not an error."""
    error_pattern = "CheckpointError: .*" + (NEEDED if error in ("ENOSPC", "EDQUOT") else "")
    faulty = [(index, call) for index, call in enumerate(protocol) if call.name in MAY_FAIL]
    assert len(faulty) >= LEAST_THAT_MAY_FAIL
    for index, call in faulty:
        case = saves.save("-e", f"inject={call.name}:error={error}:when={call.number}+")
        assert re.search(f"= -1 {error} .*INJECTED", case.calls[index].text), call
        is_saved = index > last(protocol, r"fsync\(\d+<FOLDER>\)")
        assert re.match("saved" if is_saved else error_pattern, case.message), (call, case.message)
        assert_whole(case, 2 if index > last(protocol, COMMIT) else 1, call)


@pytest.mark.parametrize("error", ["EINVAL", "EOPNOTSUPP"])
def test_checkpoints_are_saved_where_folders_can_not_be_fsynced(error: str, saves: Saves, protocol: list[Call]) -> None:
    case = saves.save("-e", f"inject=fsync:error={error}")
    assert [call for call in case.calls if call.name == "fsync" and f"{error} " in call.text], "injected"
    assert case.message == "saved"
    assert_whole(case, 2, case.calls[-1])
