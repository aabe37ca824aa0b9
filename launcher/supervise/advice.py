"""Remedies for known failures, found by patterns in the failure's text."""

import re

_REMEDIES = (
    (
        r"out of memory|OutOfMemoryError|can't allocate memory|cannot allocate memory|bad_alloc",
        "more workers with a GPU or a machine each; or, which is another run, a smaller train.micro_batch",
    ),
    (r"killed by SIGKILL", "free -h and dmesg show whether memory ran out; otherwise a user or a tool killed it"),
    (
        r"killed by SIG(SEGV|BUS|ILL|FPE|ABRT)",
        "a fault in a library or the machine: try another node, compare versions",
    ),
    (r"address already in use|EADDRINUSE", "another process uses the port: start again, a new port is chosen"),
    (r"No space left|Disk quota|not saved: \[Errno 28\]", "free some space where the run directory is, then resume"),
    (r"Read-only file system|Permission denied", "make the run directory writable, then resume"),
    (r"NCCL|ncclSystemError", "NCCL_DEBUG=INFO (--env) shows what NCCL did; check the GPUs and the links between them"),
    (
        r"hangs, for|wait for one another|timed? ?out",
        "the stacks in the ranks' logs show where they hung; if a step only takes long, raise --hang-timeout",
    ),
    (r"SHA-256 sum is not|prepare the set again|shard", "fmfsd data verify DIR names every damaged file"),
    (r"not finite|NaN or infinite", "a lower optim.lr, optim.clip_norm, or train.precision fp32"),
    (r"did not stop within", "a --grace long enough for one step and one checkpoint"),
    (r"its agent (is gone|does not answer)", "check that node: it may be down, or its processes were killed"),
)


def find_remedy(text: str) -> str:
    """Return the likely remedy for a failure with this text, or "" if no known pattern matches."""
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, text, re.IGNORECASE)), "")
