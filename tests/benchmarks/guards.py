"""Switches off one guard at a time, in a copy of the checkout, and expects a test to turn red.

python -m tests.benchmarks.guards [--only WORD]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.table import print_table

CHECKOUT = Path(__file__).parents[2]
FOLDERS = ("fmfsd", "launcher", "tests", "tune_spaces", "cluster")


@dataclass(frozen=True)
class Guard:
    """`text` in `file` is what guards; with `without` in its place, `test` must fail."""

    name: str
    file: str
    text: str
    without: str
    test: str


GUARDS = (
    Guard(
        "a worker dies with its starter",
        "fmfsd/system/parent_death.py",
        "    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)\n",
        "",
        "tests/faults/test_signals.py::test_a_signal_ends_the_run_as_documented_and_leaves_no_process[agent-SIGKILL]",
    ),
    Guard(
        "a starter dies with its agent",
        "launcher/agent/parent_death.py",
        "    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)\n",
        "",
        "tests/faults/test_signals.py::test_a_signal_ends_the_run_as_documented_and_leaves_no_process[agent-SIGKILL]",
    ),
    Guard(
        "an agent ends what it started",
        "launcher/agent/processes.py",
        "            os.kill(pid, signal.SIGKILL)\n",
        "            pass\n",
        "tests/launcher/supervise/test_coordinator.py::test_a_killed_starter_takes_its_orphans_with_it",
    ),
    Guard(
        "a kernel that others may have written",
        "fmfsd/cpu/cpp_extension.py",
        "    read_private(path)\n",
        "",
        "tests/fmfsd/cpu/test_cpp_extension.py::test_a_library_that_others_may_write_is_not_loaded",
    ),
    Guard(
        "a worker that has ended is not waited for",
        "fmfsd/cpu/sums.cpp",
        "        if (ended) return ENDED;\n",
        "        (void)ended;\n",
        "tests/distributed/test_shared_memory_sums.py::test_the_others_hear_at_once_that_a_worker_has_ended",
    ),
    Guard(
        "workers add up the same things",
        "fmfsd/cpu/sums.cpp",
        "seat.bytes[turn % 2] != bytes ? UNLIKE",
        "false ? UNLIKE",
        "tests/distributed/test_shared_memory_sums.py::test_workers_that_do_not_add_up_the_same_are_told",
    ),
    Guard(
        "only the file that was made for it is mapped",
        "fmfsd/cpu/shared_memory_sums.py",
        "        if name in os.readlink(path):\n",
        "        if True:\n",
        "tests/distributed/test_shared_memory_sums.py::test_only_a_file_of_that_name_is_mapped",
    ),
    Guard(
        "sums are of what values are beyond one near the mean",
        "fmfsd/cpu/batch_norm.cpp",
        "shift[c] = near_mean(x, B, C, P, channels_last, c);",
        "shift[c] = 0;",
        "tests/distributed/test_exactness.py::test_moments_keep_their_digits_far_from_zero_and_with_more_threads",
    ),
    Guard(
        "a folder of kernels that others may write",
        "fmfsd/system/kernel_cache.py",
        "        require_private(each, each.stat())\n",
        "        pass\n",
        "tests/fmfsd/cpu/test_cpp_extension.py::test_nor_is_one_in_a_folder_that_they_may_write",
    ),
    Guard(
        "a second pass has the statistics of its own first",
        "fmfsd/model/activation_checkpointing.py",
        "stack.enter_context(norm.repeating(statistics[norm]))",
        "stack.enter_context(norm.repeating(norm.last))",
        "tests/fmfsd/model/test_activation_checkpointing.py::test_two_passes_have_the_statistics_of_each",
    ),
    Guard(
        "batch statistics are taken once where maps are computed twice",
        "fmfsd/model/activation_checkpointing.py",
        "    norm.momentum = 0.0\n",
        "",
        "tests/fmfsd/model/test_activation_checkpointing.py::test_weights_statistics_and_momenta_are_the_same_to_the_last_bit[1]",
    ),
    Guard(
        "labels that are shared out without looking at them",
        "fmfsd/data/augment/mixup_cutmix.py",
        "(each.unsqueeze(1) == classes).to(share_B.dtype)",
        "torch.nn.functional.one_hot(each, num_classes).to(share_B.dtype)",
        "tests/training/test_compiled.py::test_the_host_waits_for_no_value_in_a_step[recipe1]",
    ),
    Guard(
        "a checkpoint's sums",
        "fmfsd/checkpoint/store.py",
        'if hashlib.sha256(content).hexdigest() != manifest["sha256"][name]:',
        "if False:",
        "tests/fmfsd/checkpoint/test_checkpoint.py::test_no_change_of_any_byte_goes_unnoticed",
    ),
    Guard(
        "a shard's sum",
        "fmfsd/data/loading/shards_in_memory.py",
        "if digest.hexdigest() != shard.sha256:",
        "if False:",
        "tests/fmfsd/data/test_sampling.py::test_a_worker_verifies_what_it_reads",
    ),
    Guard(
        "no checkpoint holds NaN",
        "fmfsd/checkpoint/store.py",
        "        saved.require_finite()\n",
        "",
        "tests/fmfsd/checkpoint/test_checkpoint.py::test_a_checkpoint_never_holds_nan",
    ),
    Guard(
        "the copy that is written",
        "fmfsd/checkpoint/manager.py",
        "saved.staged()",
        "saved",
        "tests/fmfsd/checkpoint/test_manager.py::test_training_goes_on_while_a_checkpoint_is_written",
    ),
    Guard(
        "flushed before it is renamed",
        "fmfsd/system/atomic_files.py",
        "                flush_to_disk(file.fileno())\n",
        "                pass\n",
        "tests/faults/test_interrupted_saves.py::test_what_a_checkpoint_is_made_of_is_on_the_disk_before_it_has_its_name",
    ),
    Guard(
        "links are not followed",
        "fmfsd/system/atomic_files.py",
        "os.O_RDONLY | os.O_NOFOLLOW",
        "os.O_RDONLY",
        "tests/fmfsd/checkpoint/test_manager.py::test_links_are_not_followed",
    ),
    Guard(
        "the fence, before a save",
        "fmfsd/checkpoint/store.py",
        "            self._require_ours()\n",
        "",
        "tests/fmfsd/checkpoint/test_manager.py::test_a_worker_that_outlived_its_attempt_commits_nothing",
    ),
    Guard(
        "the fence, in the midst of a save",
        "fmfsd/checkpoint/store.py",
        "        self._clear_away()\n",
        "",
        "tests/fmfsd/checkpoint/test_manager.py::test_a_worker_that_is_overtaken_in_the_midst_of_a_save_commits_nothing",
    ),
    Guard(
        "the fence, of records",
        "fmfsd/run/metrics.py",
        "write_whole(self._path, b",
        "self._path.write_bytes(b",
        "tests/fmfsd/system/test_basics.py::test_what_a_worker_records_that_outlived_its_attempt_is_not_in_the_file",
    ),
    Guard(
        "the lock",
        "launcher/run_dir/run_lock.py",
        "hold_lock(run.lock)",
        "hold_lock(run.lock.with_name(str(time.monotonic_ns())))",
        "tests/faults/test_run_lock.py",
    ),
    Guard(
        "no secret is kept with a launch",
        "launcher/config/launch_config.py",
        "value if shown(name, value) == value else None",
        "value",
        "tests/launcher/manage/test_saved_launches.py::test_a_launch_is_read_back_as_it_was_and_holds_no_secret",
    ),
    Guard(
        "what is to end now does not stop first",
        "fmfsd/training/stop_flag.py",
        "request.read_text() != NOW",
        "request.exists()",
        "tests/launcher/supervise/test_stop_requests.py::test_a_request_to_end_now_ends_a_run_that_would_have_stopped",
    ),
    Guard(
        "two interrupts at once are one",
        "launcher/supervise/stop_requests.py",
        "now - self._first_interrupt >= SECOND_INTERRUPT_S",
        "True",
        "tests/launcher/supervise/test_stop_requests.py::test_interrupts_closer_than_a_second_are_one",
    ),
    Guard(
        "a stop is agreed on",
        "fmfsd/training/step_all_reduce.py",
        "stop=stop > 0,",
        "stop=False,",
        "tests/faults/test_signals.py::test_a_signal_ends_the_run_as_documented_and_leaves_no_process[worker-SIGTERM]",
    ),
    Guard(
        "a hang is looked for",
        "launcher/supervise/coordinator.py",
        "(hang := self._pulses.look())",
        "(hang := None)",
        "tests/faults/test_hangs.py",
    ),
    Guard(
        "weights are compared",
        "fmfsd/training/loop.py",
        "differs = bool(mine != first)",
        "differs = False",
        "tests/fmfsd/training/test_loop_saving.py::test_workers_whose_weights_differ_in_a_bit_do_not_save",
    ),
    Guard(
        "DDP is warmed up",
        "fmfsd/training/loop.py",
        "        self.engine.warm_up(lambda: self._forward_backward(0, 0, 1))\n",
        "",
        "tests/distributed/test_exactness.py::test_a_stopped_and_resumed_run_is_the_uninterrupted_one_bit_for_bit",
    ),
    Guard(
        "the feature norm is over all workers",
        "fmfsd/training/loop.py",
        "total = self.loss.total(terms, squares_F, world_size=self.comms.size)",
        "total = self.loss.total(terms, terms.squares_F.detach(), world_size=1)",
        "tests/distributed/test_invariance.py::test_every_switch_comes_to_the_same_on_any_number_of_workers",
    ),
    Guard(
        "results that depend on the number of workers end a comparison with 1",
        "launcher/diagnostics/invariance/verify.py",
        "if any(row.beyond for row in rows)",
        "if False",
        "tests/end_to_end/test_verify_invariance.py::test_a_config_whose_results_depend_on_the_workers_is_told_so",
    ),
    Guard(
        "what would come to the same is not tried again",
        "launcher/supervise/restarts.py",
        "if not failure.worth_another_attempt:",
        "if False:",
        "tests/launcher/supervise/test_restarts.py::test_what_would_come_to_the_same_is_not_tried_again",
    ),
    Guard(
        "a run's own config",
        "launcher/check/run_checks.py",
        "if not change.is_allowed]",
        "if False]",
        "tests/launcher/check/test_launch_checks.py::test_a_run_directory_of_another_config_is_refused_with_the_difference",
    ),
)


def is_red(guard: Guard, copy: Path) -> bool:
    """Whether the test fails without the guard; the copy is then as before."""
    path = copy / guard.file
    before = path.read_text()
    assert before.count(guard.text) == 1, f"{guard.name}: stands {before.count(guard.text)} times in {guard.file}"
    path.write_text(before.replace(guard.text, guard.without))
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", guard.test]
        env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=600)
    finally:
        path.write_text(before)
    assert done.returncode in (0, 1), f"{guard.test}: {done.stdout[-2000:]}"
    return done.returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="Guards whose name has this word.")
    asked = parser.parse_args()
    chosen = [guard for guard in GUARDS if asked.only in guard.name]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy.mkdir()
        for name in FOLDERS:
            shutil.copytree(CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(CHECKOUT / name, copy / name)
        found = {guard: is_red(guard, copy) for guard in chosen}
    rows = [[guard.name, guard.test.rpartition("::")[2], "red" if red else "GREEN"] for guard, red in found.items()]
    print_table(["guard that was switched off", "test", "is"], rows)
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
