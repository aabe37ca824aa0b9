"""A search within so many bytes: real files, and what is left of them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fmfsd.errors import ConfigError
from launcher.config.byte_sizes import at_least, at_most, parse_size
from launcher.config.launch_config import TuneOptions
from launcher.resources.cost_probe import Costs
from launcher.tune.records.history import History
from launcher.tune.records.ledger import Ledger, facts
from launcher.tune.sweep import disk_budget
from launcher.tune.sweep.disk_budget import LOGS_BYTES, DiskBudget, Needs
from tests.helpers.runs import tiny_config
from tests.helpers.sweeps import MadeSweep

MIB = 1 << 20
OPTIONS = TuneOptions(trials=8, best=1, disk_bytes=10 * MIB)
needs_unshare = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[MadeSweep]:
    made = MadeSweep(tmp_path / "sweep", OPTIONS)
    yield made
    made.ledger.close()


def ended(made: MadeSweep, number: int, state: str, top1: float = 0.0) -> None:
    """With a checkpoint of 1 MiB and a log."""
    made.asked(number)
    made.begun(number)
    checkpoint = made.dir.trial(f"{number:04d}").checkpoints / "step-00000010"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(os.urandom(MIB))
    if state != "asked":
        made.ended(number, state, deepest_top1=top1)


def budget(made: MadeSweep, mib: float, *, concurrent: int = 1, keep: int = 0) -> tuple[DiskBudget, History]:
    """For trials of 1 MiB of checkpoints at most, at their end (`keep` 0) and 2 MiB while they run."""
    options = replace(OPTIONS, disk_bytes=int(mib * MIB))
    needs = Needs.of(options, concurrent=concurrent, checkpoint_bytes=MIB, keep=keep)
    return DiskBudget(made.dir, options, needs), History.read(made.dir.ledger, options)


def whole(made: MadeSweep) -> list[str]:
    """Trials that have their checkpoints."""
    return sorted(path.name for path in made.dir.trials.iterdir() if any(path.glob("checkpoints/step-*/*")))


def test_sizes_are_read_in_binary_units() -> None:
    assert [parse_size("--x", text) for text in ("500M", "10G", "1.5T")] == [500 << 20, 10 << 30, 3 << 39]
    for text in ("10", "10g", "-1G", "0G", "1e3G", "G", "", "10 G", "\N{SUPERSCRIPT TWO}G", "nanG"):
        with pytest.raises(ConfigError, match="expected a size above 0, as 500M, 10G or 1.5T"):
            parse_size("--x", text)


@pytest.mark.parametrize("number", [1, MIB, 1536 * MIB, 12_345_678_901])
def test_a_size_that_is_proposed_is_one_that_is_understood(number: int) -> None:
    assert parse_size("--x", at_least(number)) >= number
    assert number < MIB or parse_size("--x", at_most(number)) <= number


def test_the_least_that_is_needed_is_said_before_the_first_trial(sweep: MadeSweep) -> None:
    """8 runs of 256 KiB, the best one's 1 MiB and 3 running ones' 2 MiB each: 9 MiB."""
    found, _ = budget(sweep, 9, concurrent=3)
    assert list(found.refused()) == []
    (problem,) = budget(sweep, 8.9, concurrent=3)[0].refused()
    assert str(problem) == (
        "--disk-budget 8M: 3 at a time with up to 2 MiB of checkpoints each, all checkpoints of the best 1, and logs "
        "and metrics of 8 runs need about 9 MiB: set at least 9M, or run fewer at a time: --concurrent 2"
    )
    (problem,) = budget(sweep, 2)[0].refused()
    assert str(problem).endswith("need about 5 MiB: set at least 5M")


def test_a_budget_beyond_the_disk_is_refused(sweep: MadeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the search holds already is its own."""
    ended(sweep, 0, "finished", 0.5)
    monkeypatch.setattr(disk_budget, "free_space", lambda _: (9 * MIB, 1000))
    assert list(budget(sweep, 10)[0].refused()) == []
    (problem,) = budget(sweep, 20)[0].refused()
    assert str(problem) == (
        "--disk-budget 20M: only 10 MiB are available on the disk: free disk space, or set at most 10M"
    )
    (problem,) = budget(sweep, 20, concurrent=8)[0].refused()
    assert "need about 19 MiB, but only 10 MiB are available on the disk: free 9 MiB more on the disk, or " in str(
        problem
    )
    assert str(problem).endswith("--concurrent 3")


def test_runs_with_further_seeds_have_logs_too() -> None:
    with_seeds = replace(OPTIONS, seeds=5, best=2)
    assert Needs.of(with_seeds, concurrent=1, checkpoint_bytes=MIB, keep=2).runs == 8 + 3 * 5
    assert Needs.of(OPTIONS, concurrent=1, checkpoint_bytes=0, keep=2).total == 8 * LOGS_BYTES


def test_a_checkpoints_size_is_the_base_configs(sweep: MadeSweep, prepared: Path) -> None:
    """Weights and momenta of a million parameters; unknown, it is what a launch wants free."""
    config = tiny_config(prepared, "checkpoint.keep=2")
    needs = DiskBudget.of(sweep.dir, OPTIONS, config, Costs(parameters=1_000_000), concurrent=1).needs
    assert (needs.while_it_runs, needs.whole) == (4 * 8_000_000, 3 * 8_000_000)
    assert DiskBudget.of(sweep.dir, OPTIONS, config, Costs(), concurrent=1).needs.while_it_runs == 320 * MIB


def test_while_there_is_room_nothing_goes(sweep: MadeSweep) -> None:
    for number in range(4):
        ended(sweep, number, "finished", number / 10)
    found, history = budget(sweep, 10)
    assert found.tidy(history, sweep.ledger) == []
    assert whole(sweep) == ["0000", "0001", "0002", "0003"]


def test_first_the_failed_go_then_the_stopped_then_the_worst_and_no_more_than_has_to(sweep: MadeSweep) -> None:
    """Each trial is 1 MiB and a little; one that begins needs 2.25 MiB."""
    ended(sweep, 0, "finished", 0.5)
    ended(sweep, 1, "finished", 0.1)
    ended(sweep, 2, "finished", 0.2)
    ended(sweep, 3, "pruned", 0.9)
    ended(sweep, 4, "failed")
    gone = []
    for mib in (7.2, 6.2, 5.2, 4.2, 3.5):
        found, history = budget(sweep, mib)
        gone.append([trial.name for trial in found.tidy(history, sweep.ledger)])
    assert gone == [["0004"], ["0003"], ["0001"], ["0002"], []]
    assert whole(sweep) == ["0000"]
    assert [fact["trial"] for fact in facts(sweep.dir.ledger) if fact["fact"] == "freed"] == [4, 3, 1, 2]
    assert (sweep.dir.trial("0001").attempt(1)).exists()


def test_what_a_trial_needs_that_is_not_at_its_end_stays(sweep: MadeSweep) -> None:
    """However short room is; then no other begins, and it is said why."""
    ended(sweep, 0, "finished", 0.5)
    ended(sweep, 1, "asked")
    found, history = budget(sweep, 2)
    assert found.tidy(history, sweep.ledger) == []
    assert whole(sweep) == ["0000", "0001"]
    assert not found.may_begin(history)
    assert found.trouble(history) == (
        "no trial can start: 4 MiB of disk space are missing; the sweep uses 2 MiB, none of which may be deleted"
    )
    (roomy, history) = budget(sweep, 8)
    assert roomy.may_begin(history)


def test_runs_with_further_seeds_keep_no_checkpoints(sweep: MadeSweep) -> None:
    sweep.ledger.note("confirmed", config="base", seed=1, metrics={})
    for name in ("base-seed-1", "base-seed-2"):
        (sweep.dir.trial(name).checkpoints / "step-00000010").mkdir(parents=True)
        (sweep.dir.trial(name).checkpoints / "step-00000010" / "model.safetensors").touch()
    found, history = budget(sweep, 10)
    found.tidy_reruns(history)
    assert whole(sweep) == ["base-seed-2"]


def test_a_trial_that_is_larger_than_the_base_is_reckoned_with(sweep: MadeSweep) -> None:
    ended(sweep, 0, "finished", 0.5)
    found, history = budget(sweep, 6)
    assert found.may_begin(history)
    with (sweep.dir.trial("0000").checkpoints / "step-00000010" / "model.safetensors").open("ab") as file:
        file.write(os.urandom(3 * MIB))
    assert not budget(sweep, 6)[0].may_begin(history)


def test_a_disk_that_others_fill_is_short_too(sweep: MadeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    ended(sweep, 0, "finished", 0.5)
    ended(sweep, 1, "finished", 0.1)
    found, history = budget(sweep, 100)
    assert found.tidy(history, sweep.ledger) == []
    monkeypatch.setattr(disk_budget, "free_space", lambda _: (2 * MIB, 1000))
    assert [trial.name for trial in found.tidy(history, sweep.ledger)] == ["0001"]


def test_without_a_budget_nothing_is_refused_and_nothing_goes(sweep: MadeSweep) -> None:
    ended(sweep, 0, "failed")
    free = replace(OPTIONS, disk_bytes=None)
    found = DiskBudget(sweep.dir, free, Needs.of(free, concurrent=9, checkpoint_bytes=1 << 60, keep=2))
    history = History.read(sweep.dir.ledger, free)
    assert (list(found.refused()), found.tidy(history, sweep.ledger), found.may_begin(history)) == ([], [], True)
    assert whole(sweep) == ["0000"]


def test_what_a_kill_has_left_between_the_fact_and_the_removal_goes_at_the_next_look(
    sweep: MadeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is moved, and with a folder that is moved and half gone."""
    ended(sweep, 0, "finished", 0.5)
    ended(sweep, 1, "failed")
    ended(sweep, 2, "failed")
    for step in ("rename", "rmtree"):
        found, history = budget(sweep, 3.5)
        with monkeypatch.context() as patch:
            patch.setattr(os if step == "rename" else shutil, step, killed)
            with pytest.raises(KeyboardInterrupt):
                found.tidy(history, sweep.ledger)
    assert whole(sweep) == ["0000", "0002"]
    again, history = budget(sweep, 3.5)
    assert [trial.name for trial in again.tidy(history, sweep.ledger)] == ["0002"]
    assert whole(sweep) == ["0000"]
    assert [path for path in sweep.dir.trials.rglob("*") if "doomed" in path.name] == []
    assert [fact["trial"] for fact in facts(sweep.dir.ledger) if fact["fact"] == "freed"] == [1, 2]


def killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("at", ["", "checkpoints", "checkpoints/step-00000010"])
def test_what_a_link_leads_to_stays(at: str, sweep: MadeSweep, tmp_path: Path) -> None:
    ended(sweep, 0, "finished", 0.5)
    ended(sweep, 1, "failed")
    place = sweep.dir.trial("0001").path / at
    place.rename(elsewhere := tmp_path / "elsewhere")
    place.symlink_to(elsewhere)
    found, history = budget(sweep, 0.1)
    found.tidy(history, sweep.ledger)
    assert list(elsewhere.rglob("model.safetensors"))


@pytest.mark.usefixtures("processes")
@needs_unshare
def test_on_a_disk_that_is_full_to_the_last_byte_room_is_made_all_the_same(tmp_path: Path) -> None:
    """There is no room for the fact before something has gone; and what could not be written leaves no torn line."""
    script = """
import os, sys
from pathlib import Path
from launcher.config.launch_config import TuneOptions
from launcher.tune.sweep.disk_budget import DiskBudget, Needs
from launcher.tune.records.history import History
from launcher.tune.records.ledger import facts
from tests.helpers.sweeps import MadeSweep
disk, options = Path(sys.argv[1]), TuneOptions(trials=2, disk_bytes=1 << 23)
made = MadeSweep(disk / "sweep", options)
made.asked(0); made.begun(0); made.ended(0, "failed")
checkpoint = made.dir.trial("0000").checkpoints / "weights"
checkpoint.write_bytes(bytes(1 << 20))
try:
    with open(disk / "others", "wb", buffering=0) as file:
        while file.write(bytes(1 << 12)): pass
except OSError: pass
try:
    while True: made.ledger.note("told", text="x" * 100)
except OSError: pass
assert os.statvfs(disk).f_bavail == 0
budget = DiskBudget(made.dir, options, Needs.of(options, concurrent=1, checkpoint_bytes=1 << 20, keep=1))
freed = budget.tidy(History.read(made.dir.ledger, options), made.ledger)
print([trial.name for trial in freed], checkpoint.exists(), facts(made.dir.ledger)[-1]["fact"])
"""
    full = f'mount -t tmpfs -o size=4m none "{tmp_path}" && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", full, "sh", sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout == "['0000'] False freed\n", done.stderr


def test_a_fact_that_could_not_be_kept_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.note("asked", trial=0)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:9]))
        with pytest.raises(OSError, match="full"):
            ledger.note("asked", trial=1)
    ledger.note("asked", trial=2)
    ledger.close()
    assert [fact["trial"] for fact in facts(tmp_path / "ledger.jsonl")] == [0, 2]
