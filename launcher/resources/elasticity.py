"""Which nodes an elastic launch continues with when others are lost."""

from collections.abc import Collection

from launcher.config.launch_config import LaunchConfig


def usable_nodes(left: int, workers: int, shards: int) -> int:
    """Return the largest number of nodes, at most `left`, whose workers divide the shards evenly; 0 if there is none.

    `workers` is the number on each node.
    """
    return max((count for count in range(1, left + 1) if shards % (count * workers) == 0), default=0)


def slots_to_use(lost: Collection[int], launch: LaunchConfig, *, workers: int, shards: int) -> tuple[int, ...]:
    """Return the node slots to use while the nodes `lost` do not respond; all slots unless the launch may shrink."""
    slots = tuple(range(launch.nodes))
    if launch.min_nodes is None or not lost:
        return slots
    left = tuple(slot for slot in slots if slot not in lost)
    count = usable_nodes(len(left), workers, shards)
    return left[:count] if count >= launch.min_nodes else slots
