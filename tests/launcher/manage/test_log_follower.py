"""Following logs: whole lines with their source, each once, with any content and if files are truncated or replaced."""

import os
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from launcher.config.plain_text import sanitize_line
from launcher.run_dir.log_follower import READ_BYTES, LogFollower


def append_log(run: RunDir, text: str | bytes, *, node: int = 0, rank: int = 0) -> Path:
    path = run.rank_log(node, rank)
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)
    return path


def test_lines_are_complete_appear_once_and_name_their_source(run: RunDir) -> None:
    follower = LogFollower(run)
    append_log(run, "one\ntw")
    assert follower.poll() == ["[node 0 rank 0] one"]
    assert follower.poll() == []
    append_log(run, "o\n")
    append_log(run, "new\n", node=1, rank=10)
    append_log(run, "new\n", node=1, rank=9)
    (run.starter_log(0)).write_text("started\n")
    assert follower.poll() == [
        "[node 0 rank 0] two",
        "[node 0 starter] started",
        "[node 1 rank 9] new",
        "[node 1 rank 10] new",
    ]


def test_one_worker_alone_can_be_followed(run: RunDir) -> None:
    for rank in (1, 11):
        append_log(run, "here\n", rank=rank)
    assert LogFollower(run, rank=1, lines=5).poll() == ["[node 0 rank 1] here"]


def test_logs_of_batch_jobs_are_read_too(run: RunDir, tmp_path: Path) -> None:
    write_json(run.jobs, {"jobs": [{"id": "7", "log": str(tmp_path / "7.log")}, {"id": "8", "log": "logs/8.log"}]})
    for path in (tmp_path / "7.log", run.logs / "8.log"):
        path.write_text("hello\n")
    assert LogFollower(run, lines=1).poll() == ["[job 7] hello", "[job 8] hello"]
    assert LogFollower(run, lines=1, rank=0).poll() == []


@pytest.mark.parametrize(
    ("lines", "expected"), [(0, []), (1, ["c"]), (2, ["b", "c"]), (3, ["a", "b", "c"]), (9, ["a", "b", "c"])]
)
def test_of_existing_logs_the_last_lines_are_shown(lines: int, expected: list[str], run: RunDir) -> None:
    append_log(run, "a\nb\nc\nunend")
    follower = LogFollower(run, lines=lines)
    assert follower.poll() == [f"[node 0 rank 0] {line}" for line in expected]
    assert follower.unended_lines() == ["[node 0 rank 0] unend"]
    append_log(run, "ed\n")
    assert follower.poll() == ["[node 0 rank 0] unended"]
    assert follower.unended_lines() == []


def test_a_log_that_is_truncated_or_replaced_is_read_from_the_start(run: RunDir) -> None:
    path, follower = append_log(run, "one\ntwo\nthr"), LogFollower(run)
    follower.poll()
    path.write_text("cut\n")
    assert follower.poll() == ["[node 0 rank 0] cut"]
    replacement = path.with_name("new")
    replacement.write_text("replaced, and longer than before\n")
    os.replace(replacement, path)
    assert follower.poll() == ["[node 0 rank 0] replaced, and longer than before"]
    path.unlink()
    assert follower.poll() == []


def test_a_large_log_is_read_in_pieces_and_an_endless_line_is_cut(run: RunDir) -> None:
    follower = LogFollower(run)
    append_log(run, "x" * (READ_BYTES + 7))
    assert follower.poll() == ["[node 0 rank 0] " + "x" * READ_BYTES]
    append_log(run, "\n" + "y\n" * READ_BYTES)
    pieces = list(iter(follower.poll, []))
    assert len(pieces) > 1
    assert sum(map(len, pieces)) == READ_BYTES + 1


def test_unreadable_logs_are_skipped(run: RunDir) -> None:
    append_log(run, "here\n", rank=1)
    os.mkfifo(run.rank_log(0, 0))
    run.rank_log(0, 2).mkdir()
    run.rank_log(0, 3).symlink_to("nowhere")
    assert LogFollower(run, lines=5).poll() == ["[node 0 rank 1] here"]


@pytest.mark.parametrize(
    ("raw", "expected"),
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
def test_control_characters_are_removed_or_escaped(raw: bytes, expected: str) -> None:
    assert sanitize_line(raw.decode(errors="replace")) == expected
