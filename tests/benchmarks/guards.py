"""Mutation check of the safeguards: switches off one at a time, in a copy of the checkout; a test must then fail.

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
    """A safeguard: the source text `text` in `file`. With `without` in its place, `test` must fail."""

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
        "an agent kills the processes it started",
        "launcher/agent/processes.py",
        "            os.kill(pid, signal.SIGKILL)\n",
        "            pass\n",
        "tests/launcher/supervise/test_coordinator.py::test_orphans_of_a_killed_starter_are_killed",
    ),
    Guard(
        "a kernel that other users may have written is not loaded",
        "fmfsd/cpu/cpp_extension.py",
        "    read_private(path)\n",
        "",
        "tests/fmfsd/cpu/test_cpp_extension.py::test_a_library_that_others_can_write_is_not_loaded",
    ),
    Guard(
        "workers do not wait for a worker that has exited",
        "fmfsd/cpu/sums.cpp",
        "        if (ended) return ENDED;\n",
        "        (void)ended;\n",
        "tests/distributed/test_shared_memory_sums.py::test_the_other_workers_fail_at_once_when_a_worker_ends",
    ),
    Guard(
        "workers add up tensors of the same size",
        "fmfsd/cpu/sums.cpp",
        "seat.bytes[turn % 2] != bytes ? UNLIKE",
        "false ? UNLIKE",
        "tests/distributed/test_shared_memory_sums.py::test_workers_that_sum_different_shapes_get_an_error",
    ),
    Guard(
        "only the file created for the sums is mapped",
        "fmfsd/cpu/shared_memory_sums.py",
        "        if name in os.readlink(path):\n",
        "        if True:\n",
        "tests/distributed/test_shared_memory_sums.py::test_only_a_file_with_the_expected_name_is_mapped",
    ),
    Guard(
        "moments are computed relative to a value near the mean",
        "fmfsd/cpu/batch_norm.cpp",
        "shift[c] = near_mean(x, B, C, P, channels_last, c);",
        "shift[c] = 0;",
        "tests/distributed/test_exactness.py::test_moments_are_precise_far_from_zero_and_with_more_threads",
    ),
    Guard(
        "the kernel cache folder is private",
        "fmfsd/system/kernel_cache.py",
        "        require_private(path, path.stat())\n",
        "        pass\n",
        "tests/fmfsd/cpu/test_cpp_extension.py::test_no_library_is_cached_in_a_folder_that_others_can_write",
    ),
    Guard(
        "a recomputed pass uses the statistics of its own first pass",
        "fmfsd/model/activation_checkpointing.py",
        "stack.enter_context(norm.reuse_statistics(statistics[norm]))",
        "stack.enter_context(norm.reuse_statistics(norm.last_statistics))",
        "tests/fmfsd/model/test_activation_checkpointing.py::test_each_of_two_passes_uses_its_own_statistics",
    ),
    Guard(
        "recomputation does not update batch statistics twice",
        "fmfsd/model/activation_checkpointing.py",
        "    norm.momentum = 0.0\n",
        "",
        "tests/fmfsd/model/test_activation_checkpointing.py::test_weights_statistics_and_momenta_are_bit_for_bit_the_same[1]",
    ),
    Guard(
        "mixed labels need no value on the host",
        "fmfsd/data/augment/mixup_cutmix.py",
        "(each.unsqueeze(1) == classes).to(share_B.dtype)",
        "torch.nn.functional.one_hot(each, num_classes).to(share_B.dtype)",
        "tests/training/test_compiled.py::test_a_step_does_not_synchronise_with_the_device[recipe1]",
    ),
    Guard(
        "a checkpoint's checksums",
        "fmfsd/checkpoint/store.py",
        'if hashlib.sha256(content).hexdigest() != manifest["sha256"][name]:',
        "if False:",
        "tests/fmfsd/checkpoint/test_checkpoint.py::test_every_changed_byte_is_detected",
    ),
    Guard(
        "a shard's checksum",
        "fmfsd/data/loading/shards_in_memory.py",
        "if digest.hexdigest() != shard.sha256:",
        "if False:",
        "tests/fmfsd/data/test_sampling.py::test_a_worker_verifies_the_shards_that_it_reads",
    ),
    Guard(
        "no checkpoint contains NaN",
        "fmfsd/checkpoint/store.py",
        "        checkpoint.require_finite()\n",
        "",
        "tests/fmfsd/checkpoint/test_checkpoint.py::test_a_state_with_nan_is_not_saved",
    ),
    Guard(
        "a checkpoint is written from a copy",
        "fmfsd/checkpoint/manager.py",
        "checkpoint.copy_to_cpu()",
        "checkpoint",
        "tests/fmfsd/checkpoint/test_manager.py::test_training_continues_while_a_checkpoint_is_written",
    ),
    Guard(
        "a file is flushed before it is renamed",
        "fmfsd/system/atomic_files.py",
        "                flush_to_disk(file.fileno())\n",
        "                pass\n",
        "tests/faults/test_interrupted_saves.py::test_a_checkpoint_is_fsynced_before_it_is_renamed",
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
        "tests/fmfsd/checkpoint/test_manager.py::test_a_worker_of_an_ended_attempt_saves_nothing",
    ),
    Guard(
        "the fence, during a save",
        "fmfsd/checkpoint/store.py",
        "        self._delete_temporary()\n",
        "",
        "tests/fmfsd/checkpoint/test_manager.py::test_a_worker_whose_attempt_ends_during_a_save_saves_nothing",
    ),
    Guard(
        "the fence, for metric records",
        "fmfsd/run/metrics.py",
        "write_atomic(self._path, b",
        "self._path.write_bytes(b",
        "tests/fmfsd/system/test_basics.py::test_records_of_a_worker_of_an_ended_attempt_are_not_in_the_file",
    ),
    Guard(
        "the run lock",
        "launcher/run_dir/run_lock.py",
        "hold_lock(run.lock)",
        "hold_lock(run.lock.with_name(str(time.monotonic_ns())))",
        "tests/faults/test_run_lock.py",
    ),
    Guard(
        "no secret is stored with a launch",
        "launcher/config/launch_config.py",
        "value if mask_secret(name, value) == value else None",
        "value",
        "tests/launcher/manage/test_saved_launches.py::test_a_stored_launch_is_read_back_unchanged_and_contains_no_secret",
    ),
    Guard(
        "a request to end now does not stop with a checkpoint first",
        "fmfsd/training/stop_flag.py",
        "request.read_text() != STOP_NOW",
        "request.exists()",
        "tests/launcher/supervise/test_stop_requests.py::test_a_request_to_end_now_kills_the_run_instead_of_stopping_it",
    ),
    Guard(
        "two interrupts within a second count as one",
        "launcher/supervise/stop_requests.py",
        "now - self._first_interrupt >= SECOND_INTERRUPT_S",
        "True",
        "tests/launcher/supervise/test_stop_requests.py::test_interrupts_within_a_second_count_as_one",
    ),
    Guard(
        "workers agree on a stop",
        "fmfsd/training/step_all_reduce.py",
        "stop=stop > 0,",
        "stop=False,",
        "tests/faults/test_signals.py::test_a_signal_ends_the_run_as_documented_and_leaves_no_process[worker-SIGTERM]",
    ),
    Guard(
        "the coordinator checks for hangs",
        "launcher/supervise/coordinator.py",
        "(hang := self._detector.",
        "(hang := None and self._detector.",
        "tests/faults/test_hangs.py",
    ),
    Guard(
        "weights are compared between workers",
        "fmfsd/training/loop.py",
        "differs = bool(checksum != of_rank_0)",
        "differs = False",
        "tests/fmfsd/training/test_loop_saving.py::test_workers_whose_weights_differ_in_one_bit_do_not_save",
    ),
    Guard(
        "DDP is warmed up",
        "fmfsd/training/loop.py",
        "        self.engine.warm_up(lambda: self._forward_backward(0, 0, 1))\n",
        "",
        "tests/distributed/test_exactness.py::test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit",
    ),
    Guard(
        "the feature norm includes all workers",
        "fmfsd/training/loop.py",
        "total = self.loss.total(terms, squares_F, world_size=self.comms.size)",
        "total = self.loss.total(terms, terms.squares_F.detach(), world_size=1)",
        "tests/distributed/test_invariance.py::test_every_option_gives_the_same_result_on_any_number_of_workers",
    ),
    Guard(
        "results that depend on the number of workers make the comparison exit with 1",
        "launcher/diagnostics/verify/verification.py",
        "if any(row.beyond for row in rows)",
        "if False",
        "tests/end_to_end/test_verify.py::test_a_config_whose_results_depend_on_the_workers_is_reported",
    ),
    Guard(
        "a failure that would repeat is not retried",
        "launcher/supervise/restarts.py",
        "if not failure.worth_another_attempt:",
        "if False:",
        "tests/launcher/supervise/test_restarts.py::test_a_failure_that_would_repeat_is_not_retried",
    ),
    Guard(
        "a run keeps its own config",
        "launcher/check/run_checks.py",
        "if not change.is_allowed]",
        "if False]",
        "tests/launcher/check/test_launch_checks.py::test_a_run_directory_of_another_config_is_refused_with_the_difference",
    ),
)


def is_red(guard: Guard, copy: Path) -> bool:
    """Return True if the test fails without the guard; the copy is restored afterwards."""
    path = copy / guard.file
    before = path.read_text()
    assert before.count(guard.text) == 1, (
        f"{guard.name}: found {before.count(guard.text)} times in {guard.file}, expected once"
    )
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
    parser.add_argument("--only", default="", help="only the guards whose name contains this text")
    options = parser.parse_args()
    chosen = [guard for guard in GUARDS if options.only in guard.name]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy.mkdir()
        for name in FOLDERS:
            shutil.copytree(CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(CHECKOUT / name, copy / name)
        results = {guard: is_red(guard, copy) for guard in chosen}
    rows = [[guard.name, guard.test.rpartition("::")[2], "red" if red else "GREEN"] for guard, red in results.items()]
    print_table(["guard switched off", "test", "result"], rows)
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
