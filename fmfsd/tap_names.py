"""Names of the taps in a backbone: the outputs of its blocks and stages."""

from collections.abc import Sequence


def name_taps(block_counts: Sequence[int]) -> tuple[str, ...]:
    """Return the name of each block's output, `stage2.block1`, or `stage2` for the last block of a stage.

    `block_counts` has the number of blocks of each stage.
    """
    return tuple(
        f"stage{stage}" if block == count else f"stage{stage}.block{block}"
        for stage, count in enumerate(block_counts, 1)
        for block in range(1, count + 1)
    )


def is_stage(tap: str) -> bool:
    """Return whether `tap` is the output of a stage, and not of a block inside it."""
    return "." not in tap
