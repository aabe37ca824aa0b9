"""The disk budget of a sweep: real files, and which checkpoints are removed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fmfsd.errors import ConfigError
from launcher.config.byte_sizes import format_size_rounded_down, format_size_rounded_up, parse_size
from launcher.config.launch_config import TuneOptions
from launcher.resources.config_cost import Costs
from launcher.tune.records.history import History
from launcher.tune.records.ledger import Ledger, read_facts
from launcher.tune.sweep import disk_budget
from launcher.tune.sweep.disk_budget import LOGS_BYTES, DiskBudget, DiskNeeds
from tests.helpers.runs import tiny_config
from tests.helpers.sweeps import FakeSweep

MIB = 1 << 20
OPTIONS = TuneOptions(trials=8, best=1, disk_bytes=10 * MIB)
needs_unshare = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[FakeSweep]:
    new_sweep = FakeSweep(tmp_path / "sweep", OPTIONS)
    yield new_sweep
    new_sweep.ledger.close()


def add_trial(new_sweep: FakeSweep, number: int, state: str, top1: float = 0.0) -> None:
    """Add a trial with a checkpoint of 1 MiB and a log."""
    new_sweep.add_trial(number)
    new_sweep.start_attempt(number)
    checkpoint = new_sweep.dir.trial(f"{number:04d}").checkpoints / "step-00000010"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(os.urandom(MIB))
    if state != "asked":
        new_sweep.end_trial(number, state, deepest_top1=top1)


def budget(new_sweep: FakeSweep, mib: float, *, concurrent: int = 1, keep: int = 0) -> tuple[DiskBudget, History]:
    """Return a budget of `mib` MiB for trials with 1 MiB of checkpoints at their end (`keep` 0) and 2 MiB while
    running."""
    options = replace(OPTIONS, disk_bytes=int(mib * MIB))
    needs = DiskNeeds.estimate(options, concurrent=concurrent, checkpoint_bytes=MIB, num_checkpoints=keep)
    return DiskBudget(new_sweep.dir, options, needs), History.read(new_sweep.dir.ledger, options)


def trials_with_checkpoints(new_sweep: FakeSweep) -> list[str]:
    """Return the names of the trials that still have their checkpoints."""
    return sorted(path.name for path in new_sweep.dir.trials.iterdir() if any(path.glob("checkpoints/step-*/*")))


def test_sizes_have_binary_units() -> None:
    assert [parse_size("--x", text) for text in ("500M", "10G", "1.5T")] == [500 << 20, 10 << 30, 3 << 39]
    for text in ("10", "10g", "-1G", "0G", "1e3G", "G", "", "10 G", "\N{SUPERSCRIPT TWO}G", "nanG"):
        with pytest.raises(ConfigError, match="expected a size above 0, as 500M, 10G or 1.5T"):
            parse_size("--x", text)


@pytest.mark.parametrize("number", [1, MIB, 1536 * MIB, 12_345_678_901])
def test_a_proposed_size_can_be_parsed(number: int) -> None:
    assert parse_size("--x", format_size_rounded_up(number)) >= number
    assert number < MIB or parse_size("--x", format_size_rounded_down(number)) <= number


def test_the_minimum_budget_is_reported_before_the_first_trial(sweep: FakeSweep) -> None:
    """Logs of 8 runs of 256 KiB, 1 MiB of the best trial and 2 MiB of each of 3 running ones: 9 MiB."""
    sweep_budget, _ = budget(sweep, 9, concurrent=3)
    assert list(sweep_budget.find_problems()) == []
    (problem,) = budget(sweep, 8.9, concurrent=3)[0].find_problems()
    assert str(problem) == (
        "--disk-budget 8M: 3 at a time with up to 2 MiB of checkpoints each, all checkpoints of the best 1, and logs "
        "and metrics of 8 runs need about 9 MiB: set at least 9M, or run fewer at a time: --concurrent 2"
    )
    (problem,) = budget(sweep, 2)[0].find_problems()
    assert str(problem).endswith("need about 5 MiB: set at least 5M")


def test_a_budget_larger_than_the_free_disk_is_refused(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that the sweep already uses count as available."""
    add_trial(sweep, 0, "finished", 0.5)
    monkeypatch.setattr(disk_budget, "free_space", lambda _: (9 * MIB, 1000))
    assert list(budget(sweep, 10)[0].find_problems()) == []
    (problem,) = budget(sweep, 20)[0].find_problems()
    assert str(problem) == (
        "--disk-budget 20M: only 10 MiB are available on the disk: free disk space, or set at most 10M"
    )
    (problem,) = budget(sweep, 20, concurrent=8)[0].find_problems()
    assert "need about 19 MiB, but only 10 MiB are available on the disk: free 9 MiB more on the disk, or " in str(
        problem
    )
    assert str(problem).endswith("--concurrent 3")


def test_logs_of_runs_with_further_seeds_count() -> None:
    with_seeds = replace(OPTIONS, seeds=5, best=2)
    assert DiskNeeds.estimate(with_seeds, concurrent=1, checkpoint_bytes=MIB, num_checkpoints=2).runs == 8 + 3 * 5
    assert (
        DiskNeeds.estimate(OPTIONS, concurrent=1, checkpoint_bytes=0, num_checkpoints=2).total_bytes == 8 * LOGS_BYTES
    )


def test_the_size_of_a_checkpoint_is_that_of_the_base_config(sweep: FakeSweep, data_root: Path) -> None:
    """Weights and momenta of a million parameters; with unknown costs, the free space that a launch requires."""
    config = tiny_config(data_root, "checkpoint.keep=2")
    needs = DiskBudget.estimate(sweep.dir, OPTIONS, config, Costs(parameters=1_000_000), concurrent=1).needs
    assert (needs.running_bytes, needs.complete_bytes) == (4 * 8_000_000, 3 * 8_000_000)
    assert DiskBudget.estimate(sweep.dir, OPTIONS, config, Costs(), concurrent=1).needs.running_bytes == 320 * MIB


def test_while_there_is_space_nothing_is_removed(sweep: FakeSweep) -> None:
    for number in range(4):
        add_trial(sweep, number, "finished", number / 10)
    sweep_budget, history = budget(sweep, 10)
    assert sweep_budget.delete_checkpoints(history, sweep.ledger) == []
    assert trials_with_checkpoints(sweep) == ["0000", "0001", "0002", "0003"]


def test_checkpoints_are_removed_of_failed_then_pruned_then_the_worst_trials_and_only_as_needed(
    sweep: FakeSweep,
) -> None:
    """Each trial takes slightly more than 1 MiB; a starting one needs 2.25 MiB."""
    add_trial(sweep, 0, "finished", 0.5)
    add_trial(sweep, 1, "finished", 0.1)
    add_trial(sweep, 2, "finished", 0.2)
    add_trial(sweep, 3, "pruned", 0.9)
    add_trial(sweep, 4, "failed")
    removed = []
    for mib in (7.2, 6.2, 5.2, 4.2, 3.5):
        sweep_budget, history = budget(sweep, mib)
        removed.append([trial.name for trial in sweep_budget.delete_checkpoints(history, sweep.ledger)])
    assert removed == [["0004"], ["0003"], ["0001"], ["0002"], []]
    assert trials_with_checkpoints(sweep) == ["0000"]
    assert [fact["trial"] for fact in read_facts(sweep.dir.ledger) if fact["fact"] == "freed"] == [4, 3, 1, 2]
    assert (sweep.dir.trial("0001").attempt(1)).exists()


def test_checkpoints_of_unfinished_and_best_trials_are_not_removed(sweep: FakeSweep) -> None:
    """However little space is left. Then no trial is started, and the reason is reported."""
    add_trial(sweep, 0, "finished", 0.5)
    add_trial(sweep, 1, "asked")
    sweep_budget, history = budget(sweep, 2)
    assert sweep_budget.delete_checkpoints(history, sweep.ledger) == []
    assert trials_with_checkpoints(sweep) == ["0000", "0001"]
    assert not sweep_budget.has_room_for_trial(history)
    assert sweep_budget.explain_shortage(history) == (
        "no trial can start: 4 MiB of disk space are missing; the sweep uses 2 MiB, none of which may be deleted"
    )
    (roomy, history) = budget(sweep, 8)
    assert roomy.has_room_for_trial(history)


def test_of_runs_with_further_seeds_finished_ones_lose_their_checkpoints(sweep: FakeSweep) -> None:
    sweep.ledger.append_fact("confirmed", config="base", seed=1, metrics={})
    for name in ("base-seed-1", "base-seed-2"):
        (sweep.dir.trial(name).checkpoints / "step-00000010").mkdir(parents=True)
        (sweep.dir.trial(name).checkpoints / "step-00000010" / "model.safetensors").touch()
    sweep_budget, history = budget(sweep, 10)
    sweep_budget.delete_rerun_checkpoints(history)
    assert trials_with_checkpoints(sweep) == ["base-seed-2"]


def test_larger_checkpoints_than_the_base_configs_raise_the_estimate(sweep: FakeSweep) -> None:
    add_trial(sweep, 0, "finished", 0.5)
    sweep_budget, history = budget(sweep, 6)
    assert sweep_budget.has_room_for_trial(history)
    with (sweep.dir.trial("0000").checkpoints / "step-00000010" / "model.safetensors").open("ab") as file:
        file.write(os.urandom(3 * MIB))
    assert not budget(sweep, 6)[0].has_room_for_trial(history)


def test_a_disk_filled_by_others_also_triggers_removal(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    add_trial(sweep, 0, "finished", 0.5)
    add_trial(sweep, 1, "finished", 0.1)
    sweep_budget, history = budget(sweep, 100)
    assert sweep_budget.delete_checkpoints(history, sweep.ledger) == []
    monkeypatch.setattr(disk_budget, "free_space", lambda _: (2 * MIB, 1000))
    assert [trial.name for trial in sweep_budget.delete_checkpoints(history, sweep.ledger)] == ["0001"]


def test_without_a_budget_nothing_is_refused_or_removed(sweep: FakeSweep) -> None:
    add_trial(sweep, 0, "failed")
    free = replace(OPTIONS, disk_bytes=None)
    sweep_budget = DiskBudget(
        sweep.dir, free, DiskNeeds.estimate(free, concurrent=9, checkpoint_bytes=1 << 60, num_checkpoints=2)
    )
    history = History.read(sweep.dir.ledger, free)
    assert (
        list(sweep_budget.find_problems()),
        sweep_budget.delete_checkpoints(history, sweep.ledger),
        sweep_budget.has_room_for_trial(history),
    ) == ([], [], True)
    assert trials_with_checkpoints(sweep) == ["0000"]


def test_an_interrupted_removal_is_completed_next_time(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the folder is renamed, and while it is being removed."""
    add_trial(sweep, 0, "finished", 0.5)
    add_trial(sweep, 1, "failed")
    add_trial(sweep, 2, "failed")
    for step in ("rename", "rmtree"):
        sweep_budget, history = budget(sweep, 3.5)
        with monkeypatch.context() as patch:
            patch.setattr(os if step == "rename" else shutil, step, raise_interrupt)
            with pytest.raises(KeyboardInterrupt):
                sweep_budget.delete_checkpoints(history, sweep.ledger)
    assert trials_with_checkpoints(sweep) == ["0000", "0002"]
    again, history = budget(sweep, 3.5)
    assert [trial.name for trial in again.delete_checkpoints(history, sweep.ledger)] == ["0002"]
    assert trials_with_checkpoints(sweep) == ["0000"]
    assert [path for path in sweep.dir.trials.rglob("*") if "doomed" in path.name] == []
    assert [fact["trial"] for fact in read_facts(sweep.dir.ledger) if fact["fact"] == "freed"] == [1, 2]


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("at", ["", "checkpoints", "checkpoints/step-00000010"])
def test_targets_of_links_are_not_removed(at: str, sweep: FakeSweep, tmp_path: Path) -> None:
    add_trial(sweep, 0, "finished", 0.5)
    add_trial(sweep, 1, "failed")
    place = sweep.dir.trial("0001").path / at
    place.rename(elsewhere := tmp_path / "elsewhere")
    place.symlink_to(elsewhere)
    sweep_budget, history = budget(sweep, 0.1)
    sweep_budget.delete_checkpoints(history, sweep.ledger)
    assert list(elsewhere.rglob("model.safetensors"))


@pytest.mark.usefixtures("processes")
@needs_unshare
def test_on_a_completely_full_disk_checkpoints_are_still_removed(tmp_path: Path) -> None:
    """The fact does not fit before something is removed, and a failed write leaves no partial line."""
    script = """
import os, sys
from pathlib import Path
from launcher.config.launch_config import TuneOptions
from launcher.tune.sweep.disk_budget import DiskBudget, DiskNeeds
from launcher.tune.records.history import History
from launcher.tune.records.ledger import read_facts
from tests.helpers.sweeps import FakeSweep
disk, options = Path(sys.argv[1]), TuneOptions(trials=2, disk_bytes=1 << 23)
made = FakeSweep(disk / "sweep", options)
made.add_trial(0); made.start_attempt(0); made.end_trial(0, "failed")
checkpoint = made.dir.trial("0000").checkpoints / "weights"
checkpoint.write_bytes(bytes(1 << 20))
try:
    with open(disk / "others", "wb", buffering=0) as file:
        while file.write(bytes(1 << 12)): pass
except OSError: pass
try:
    while True: made.ledger.append_fact("filler", text="x" * 100)
except OSError: pass
assert os.statvfs(disk).f_bavail == 0
needs = DiskNeeds.estimate(options, concurrent=1, checkpoint_bytes=1 << 20, num_checkpoints=1)
budget = DiskBudget(made.dir, options, needs)
freed = budget.delete_checkpoints(History.read(made.dir.ledger, options), made.ledger)
print([trial.name for trial in freed], checkpoint.exists(), read_facts(made.dir.ledger)[-1]["fact"])
"""
    full = f'mount -t tmpfs -o size=4m none "{tmp_path}" && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", full, "sh", sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(argv, capture_output=True, text=True)
    assert result.stdout == "['0000'] False freed\n", result.stderr


def test_a_fact_that_could_not_be_written_leaves_no_partial_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append_fact("asked", trial=0)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:9]))
        with pytest.raises(OSError, match="full"):
            ledger.append_fact("asked", trial=1)
    ledger.append_fact("asked", trial=2)
    ledger.close()
    assert [fact["trial"] for fact in read_facts(tmp_path / "ledger.jsonl")] == [0, 2]
