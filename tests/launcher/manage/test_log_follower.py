"""Logs as they grow: whole lines, of whom, once each, whatever is in them and whatever becomes of the files."""

import os
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from launcher.config.plain_text import harmless
from launcher.run_dir.log_follower import READ_BYTES, LogFollower


def say(run: RunDir, text: str | bytes, *, node: int = 0, rank: int = 0) -> Path:
    path = run.rank_log(node, rank)
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)
    return path


def test_lines_come_whole_and_once_with_whose_they_are(run: RunDir) -> None:
    follower = LogFollower(run)
    say(run, "one\ntw")
    assert follower.look() == ["[node 0 rank 0] one"]
    assert follower.look() == []
    say(run, "o\n")
    say(run, "new\n", node=1, rank=10)
    say(run, "new\n", node=1, rank=9)
    (run.starter_log(0)).write_text("started\n")
    assert follower.look() == [
        "[node 0 rank 0] two",
        "[node 0 starter] started",
        "[node 1 rank 9] new",
        "[node 1 rank 10] new",
    ]


def test_one_worker_alone_can_be_followed(run: RunDir) -> None:
    for rank in (1, 11):
        say(run, "here\n", rank=rank)
    assert LogFollower(run, rank=1, lines=5).look() == ["[node 0 rank 1] here"]


def test_what_batch_jobs_say_is_read_too(run: RunDir, tmp_path: Path) -> None:
    write_json(run.jobs, {"jobs": [{"id": "7", "log": str(tmp_path / "7.log")}, {"id": "8", "log": "logs/8.log"}]})
    for path in (tmp_path / "7.log", run.logs / "8.log"):
        path.write_text("hello\n")
    assert LogFollower(run, lines=1).look() == ["[job 7] hello", "[job 8] hello"]
    assert LogFollower(run, lines=1, rank=0).look() == []


@pytest.mark.parametrize(
    ("lines", "expected"), [(0, []), (1, ["c"]), (2, ["b", "c"]), (3, ["a", "b", "c"]), (9, ["a", "b", "c"])]
)
def test_of_what_is_there_the_last_lines_are_said(lines: int, expected: list[str], run: RunDir) -> None:
    say(run, "a\nb\nc\nunend")
    follower = LogFollower(run, lines=lines)
    assert follower.look() == [f"[node 0 rank 0] {line}" for line in expected]
    assert follower.rest() == ["[node 0 rank 0] unend"]
    say(run, "ed\n")
    assert follower.look() == ["[node 0 rank 0] unended"]
    assert follower.rest() == []


def test_a_log_that_is_cut_or_replaced_is_begun_anew(run: RunDir) -> None:
    path, follower = say(run, "one\ntwo\nthr"), LogFollower(run)
    follower.look()
    path.write_text("cut\n")
    assert follower.look() == ["[node 0 rank 0] cut"]
    beside = path.with_name("beside")
    beside.write_text("replaced, and longer than before\n")
    os.replace(beside, path)
    assert follower.look() == ["[node 0 rank 0] replaced, and longer than before"]
    path.unlink()
    assert follower.look() == []


def test_much_is_read_in_pieces_and_a_line_without_end_is_cut(run: RunDir) -> None:
    follower = LogFollower(run)
    say(run, "x" * (READ_BYTES + 7))
    assert follower.look() == ["[node 0 rank 0] " + "x" * READ_BYTES]
    say(run, "\n" + "y\n" * READ_BYTES)
    pieces = list(iter(follower.look, []))
    assert len(pieces) > 1
    assert sum(map(len, pieces)) == READ_BYTES + 1


def test_what_can_not_be_read_is_no_trouble(run: RunDir) -> None:
    say(run, "here\n", rank=1)
    os.mkfifo(run.rank_log(0, 0))
    run.rank_log(0, 2).mkdir()
    run.rank_log(0, 3).symlink_to("nowhere")
    assert LogFollower(run, lines=5).look() == ["[node 0 rank 1] here"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"plain \xc3\xbc\twords", "plain ü\twords"),
        (b"\xff\xfe", "��"),
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07text", "text"),
        (b"\x1b[2J\x1bcx", "\\x1bcx"),
        (b"10%\r20%\r30%\r", "30%"),
        (b"dos\r", "dos"),
        (b"\x07\x00\x08", "\\x07\\x00\\x08"),
        ("right\u202eleft\x9b2J".encode(), "right\\u202eleft\\x9b2J"),
    ],
)
def test_no_byte_can_hurt_a_terminal(said: bytes, expected: str) -> None:
    assert harmless(said.decode(errors="replace")) == expected
