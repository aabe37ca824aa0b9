"""Values that are each allowed but do not fit one another; all of them, before anything starts."""

from collections.abc import Iterator
from itertools import pairwise

from fmfsd.config.known import BACKBONE_CHANNELS, DATASETS, taps
from fmfsd.config.schema import TrainConfig
from fmfsd.config.timeline import Timeline

Found = Iterator[tuple[str, str]]


def contradictions(config: TrainConfig) -> Found:
    """(dotted key, message) for everything in `config` that contradicts something else in it."""
    yield from _branches(config)
    yield from _groups(config)
    batches = list(_batches(config))
    yield from batches or _schedule(config)
    if config.optim.nesterov and config.optim.momentum == 0:
        yield "optim.nesterov", "needs a momentum above 0, found optim.momentum 0"


def nearest_multiples(value: int, factor: int) -> str:
    """The multiples of `factor` around `value`, for a message."""
    below, above = value // factor * factor, -(-value // factor) * factor
    return f"{below} or {above}" if below else f"{above}"


def _branches(config: TrainConfig) -> Found:
    asked, known = config.model.branches, taps(config.model.backbone)
    if asked == "auto":
        return
    for name in dict.fromkeys(asked):
        if name not in known:
            yield "model.branches", f"{config.model.backbone} has no tap {name!r}; it has {', '.join(known)}"
        elif asked.count(name) > 1:
            yield "model.branches", f"{name} stands there {asked.count(name)} times: once is enough"
    if not asked and config.method != "plain":
        yield "model.branches", f"method {config.method} needs at least one; for the backbone alone set method: plain"


def _groups(config: TrainConfig) -> Found:
    groups = config.model.sem_groups
    if groups == "auto":
        return
    for channels in BACKBONE_CHANNELS[config.model.backbone]:
        if channels % groups:
            yield (
                "model.sem_groups",
                f"{groups} groups do not divide a map's {channels} channels; auto finds the largest that do",
            )
            return


def _batches(config: TrainConfig) -> Found:
    shards, batch, micro = config.data.shards, config.train.batch, config.micro_batch
    if batch % shards:
        yield (
            "train.batch",
            f"{batch} is not divisible by data.shards {shards}; nearest: {nearest_multiples(batch, shards)}",
        )
    elif batch % micro:
        fits = [size for size in range(shards, batch + 1, shards) if batch % size == 0]
        yield "train.micro_batch", f"{micro} does not divide train.batch {batch}; these do: {', '.join(map(str, fits))}"
    elif micro % shards:
        yield (
            "train.micro_batch",
            f"{micro} is not divisible by data.shards {shards}; nearest: {nearest_multiples(micro, shards)}",
        )


def _schedule(config: TrainConfig) -> Found:
    known = DATASETS[config.data.name]
    if config.data.valid % known.num_classes:
        nearest = nearest_multiples(config.data.valid, known.num_classes)
        yield (
            "data.valid",
            f"{config.data.valid} is not the same for each of {known.num_classes} classes; nearest: {nearest}",
        )
    timeline = Timeline.of(config, known.train_samples - config.data.valid)
    if timeline.steps_per_epoch < 1:
        yield (
            "train.batch",
            f"{config.train.batch} is more than the {known.train_samples - config.data.valid} training samples give",
        )
        return
    points = timeline.milestones
    if any(later <= earlier for earlier, later in pairwise(points)):
        yield "optim.milestones", f"must grow, found {', '.join(map(str, config.optim.milestones))}"
    whole = config.train.epochs * timeline.steps_per_epoch
    if points and points[-1] >= whole:
        end = f"{config.train.epochs} epochs of {timeline.steps_per_epoch} steps"
        yield "optim.milestones", f"{config.optim.milestones[-1]} is not before the end, {end}"
