"""Fault matrix: every listed fault has a test marked with it, and every marked fault is listed.

The numbers are those of the project's reliability page, extended by F49 to F62. Not listed: a GPU out of memory (F10)
and loss spikes (F19), which are not handled yet; faults of data loading processes (F4, F41), as workers load data
themselves; and a port taken between its choice and its use (F31), which costs one attempt.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROWS = {
    "F1": "a worker is killed",
    "F2": "a worker raises an exception, once or always",
    "F3": "a worker hangs",
    "F5": "a node's agent or starter is killed",
    "F6": "the launcher is killed",
    "F7": "the network between two nodes is cut",
    "F8": "a worker is slower than the others",
    "F9": "the kernel kills a worker for memory",
    "F11": "the disk is full while a checkpoint is written",
    "F12": "a process is killed while it writes a checkpoint",
    "F13": "a power failure: saved data is on the disk",
    "F14": "a checkpoint is damaged",
    "F15": "a checkpoint belongs to another user, or is a symlink",
    "F16": "a checkpoint would hold NaN",
    "F17": "a shard is damaged",
    "F18": "the loss is not finite",
    "F20": "a job reaches its time limit",
    "F21": "a job is cancelled",
    "F22": "a job is preempted",
    "F23": "a job is requeued",
    "F24": "a job's node fails",
    "F25": "a worker outlives its attempt",
    "F26": "Ray's head node is killed",
    "F27": "the raylet of a machine is killed",
    "F28": "the Ray actor of a trial, or the trial's worker, is killed",
    "F29": "a search's driver is killed",
    "F30": "the saved state of a search is truncated or damaged",
    "F32": "clocks differ, or jump",
    "F33": "two launches of one run at the same time",
    "F34": "the run directory is not writable",
    "F35": "data is missing or wrong",
    "F36": "many processes download one file",
    "F37": "SIGINT, once or twice",
    "F38": "two SIGTERMs at once",
    "F39": "two simultaneous launches with the same config",
    "F40": "a run is resumed with another number of workers",
    "F42": "a run is resumed with another config",
    "F43": "a run is resumed with other software versions",
    "F44": "an untested software version",
    "F45": "workers with different files or packages",
    "F46": "workers whose weights diverge",
    "F47": "the reader of the output closes the pipe",
    "F49": "a node does not answer the checks at a job's start",
    "F50": "variables of another job or launch are left in the environment",
    "F51": "the limit of open files is too low",
    "F52": "a site's script fails at a job's start",
    "F53": "a signal at any moment of any command",
    "F54": "another module has the name of one of ours",
    "F55": "options and a config are wrong in several ways at once",
    "F56": "standard streams are closed, or a terminal has no width or lacks characters",
    "F60": "a server refuses one of many simultaneous connections",
    "F61": "GPUs are present but unusable",
    "F62": "a home or temporary folder is missing, read-only or noexec, or the user has no name",
}


def _marked_faults() -> Iterator[str]:
    """Yield the arguments of every `pytest.mark.fault(...)`."""
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                yield from (ast.literal_eval(row) for row in node.args)


def test_every_fault_has_a_test_and_every_marked_fault_is_listed() -> None:
    assert set(_marked_faults()) == set(ROWS)
