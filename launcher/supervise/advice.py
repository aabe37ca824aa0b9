"""What most likely helps, by the words of a failure."""

import re

_KNOWN = (
    (
        r"out of memory|OutOfMemoryError|can't allocate memory|cannot allocate memory|bad_alloc",
        "more workers with a GPU or a machine each; or, which is another run, a smaller train.micro_batch",
    ),
    (r"killed by SIGKILL", "free -h and dmesg tell whether memory ran out; somebody may also have killed it by hand"),
    (
        r"killed by SIG(SEGV|BUS|ILL|FPE|ABRT)",
        "a fault in a library or the machine: try another node, compare versions",
    ),
    (r"address already in use|EADDRINUSE", "another process has the port: start again, a new one is chosen"),
    (r"No space left|Disk quota|not saved: \[Errno 28\]", "free some space where the run directory is, then go on"),
    (r"Read-only file system|Permission denied", "make the run directory writable, then go on"),
    (r"NCCL|ncclSystemError", "NCCL_DEBUG=INFO (--env) shows what NCCL did; check the GPUs and the links between them"),
    (
        r"hangs, for|wait for one another|timed? ?out",
        "the stacks in the ranks' logs show where they stood; if a step just takes long, raise --hang-timeout",
    ),
    (r"SHA-256 sum is not|prepare the set again|shard", "fmfsd data verify DIR names every damaged file"),
    (r"not finite|NaN or infinite", "a lower optim.lr, optim.clip_norm, or train.precision fp32"),
    (r"did not stop within", "a --grace that one step and one checkpoint fit into"),
    (r"its agent (is gone|does not answer)", "look at that node: it may be down, or somebody ended its processes"),
)


def advice(words: str) -> str:
    """The likely fix for a failure with these words; empty if it is none of the known ones."""
    return next((fix for pattern, fix in _KNOWN if re.search(pattern, words, re.IGNORECASE)), "")
