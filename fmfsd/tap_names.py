"""What the places in a backbone are called."""

from collections.abc import Sequence


def place_names(counts: Sequence[int]) -> tuple[str, ...]:
    """Of the end of each block of stages with so many: `stage2.block1`; the last one's is its stage's, `stage2`."""
    return tuple(
        f"stage{stage}" if block == count else f"stage{stage}.block{block}"
        for stage, count in enumerate(counts, 1)
        for block in range(1, count + 1)
    )


def is_stage(place: str) -> bool:
    """Whether it is the end of a stage, and not only of a block."""
    return "." not in place
