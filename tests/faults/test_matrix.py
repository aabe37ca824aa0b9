"""Every fault that can befall a run has a test, and every test that claims one names one that is in the list.

The numbers are those of the project's reliability page, and F49 to F52 are further ones. Not here: a GPU out of memory
(F10) and losses that spike (F19), for which there is no mechanism yet; faults that nothing here can have, as no process
loads data beside a worker (F4, F41); and a port that is taken between its choice and its use (F31), which costs an
attempt.
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
    "F13": "the power fails: what was promised is on the disk",
    "F14": "a checkpoint is damaged",
    "F15": "a checkpoint is not ours, or leads elsewhere",
    "F16": "a checkpoint would hold NaN",
    "F17": "a shard is damaged",
    "F18": "the loss is not finite",
    "F20": "a job's time is up",
    "F21": "a job is cancelled",
    "F22": "a job makes place for another",
    "F23": "a job is started again",
    "F24": "a job's node fails",
    "F25": "a worker outlives its attempt",
    "F26": "Ray's head is killed",
    "F27": "Ray's process of a machine is killed",
    "F28": "Ray's process of a trial, or the trial's worker, is killed",
    "F29": "a search's driver is killed",
    "F30": "what a search goes on from is cut off or damaged",
    "F32": "clocks differ, or jump",
    "F33": "two launches want one run",
    "F34": "the run's folder can't be written",
    "F35": "data is missing or wrong",
    "F36": "many want one download",
    "F37": "an interrupt, once or twice",
    "F38": "two terminations at once",
    "F39": "two launches at once, with all the same",
    "F40": "a run goes on with another number of workers",
    "F42": "a run is to go on with another config",
    "F43": "a run goes on with other software",
    "F44": "a version that was not tried",
    "F45": "workers with different files or packages",
    "F46": "workers whose weights are no longer the same",
    "F47": "whoever reads the output goes away",
    "F49": "a node does not answer the checks at a job's start",
    "F50": "variables of another job or launch are left in the environment",
    "F51": "too few files may be open",
    "F52": "a site's script fails at a job's start",
    "F53": "a signal at any moment of any command",
    "F54": "another module has the name of ours",
    "F55": "options and a config are wrong in several ways at once",
    "F56": "standard streams are closed, or a terminal has no width or lacks characters",
    "F60": "a server refuses one of many simultaneous connections",
    "F61": "GPUs are there and can't be used",
    "F62": "a home or temporary folder is missing, read-only or noexec, or the user has no name",
}


def _claimed() -> Iterator[str]:
    """The arguments of every `pytest.mark.fault(...)`."""
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                yield from (ast.literal_eval(row) for row in node.args)


def test_every_fault_has_a_test_and_every_claim_a_fault() -> None:
    assert set(_claimed()) == set(ROWS)
