"""Consistency checks of a config: values that are valid one by one but contradict each other."""

from collections.abc import Callable, Collection, Iterator
from itertools import pairwise

from fmfsd.config import deepspeed_config
from fmfsd.config.names import DATASETS, FOLDER, TIMM, get_tap_channels, list_taps
from fmfsd.config.schedule import TrainSchedule
from fmfsd.config.schema import EngineConfig, OptimConfig, RunConfig
from fmfsd.tap_names import is_stage

Problems = Iterator[tuple[str, str]]


def find_contradictions(config: RunConfig, *, skip_keys: Collection[str] = ()) -> Problems:
    """Yield (dotted key, message) for every contradiction in `config`.

    `skip_keys` are keys and sections whose values are not final; checks that read them are skipped.
    """
    for check, reads in _CHECKS.items():
        if can_check(reads, skip_keys):
            yield from check(config)
    if (known := DATASETS.get(config.data.name)) is not None:
        for length_check, reads in _LENGTH_CHECKS.items():
            if can_check(reads, skip_keys):
                yield from length_check(config, known.train_samples - config.data.valid)


def can_check(keys: Collection[str], skip_keys: Collection[str]) -> bool:
    """Return whether a check that reads `keys` can run: none of them is among the keys and sections `skip_keys`."""
    return not any(f"{key}.".startswith(f"{each}.") for key in keys for each in skip_keys)


def find_length_contradictions(config: RunConfig, train_samples: int) -> Problems:
    """Yield (dotted key, message) for every setting of `config` that does not fit a run on `train_samples` samples.

    For data sets whose size is known only after they are prepared.
    """
    for check in _LENGTH_CHECKS:
        yield from check(config, train_samples)


def nearest_multiples(value: int, factor: int) -> str:
    """Return the multiples of `factor` below and above `value`, for a message."""
    below, above = value // factor * factor, -(-value // factor) * factor
    return f"{below} or {above}" if below else f"{above}"


def _check_branches(config: RunConfig) -> Problems:
    branches, known = config.model.branches, list_taps(config.model.backbone)
    if branches == "auto":
        return
    for name in dict.fromkeys(branches):
        if known and name not in known:
            yield "model.branches", f"{config.model.backbone} has no tap {name!r}; it has {', '.join(known)}"
        elif branches.count(name) > 1:
            yield "model.branches", f"{name} is listed {branches.count(name)} times: list it once"
    if not branches and config.method not in ("plain", "label_smoothing"):
        yield "model.branches", f"method {config.method} needs at least one; for the backbone alone set method: plain"


def _check_groups(config: RunConfig) -> Problems:
    groups, channels = config.model.sem_groups, get_tap_channels(config.model.backbone)
    used = (count for tap, count in channels.items() if is_stage(tap) or tap in config.branches)
    if groups != "auto" and (uneven := next((count for count in used if count % groups), None)):
        yield (
            "model.sem_groups",
            f"{groups} groups do not divide a map's {uneven} channels; auto finds the largest that do",
        )


def _check_masks(config: RunConfig) -> Problems:
    model = config.model
    if model.fusion == "none" or model.sem != "softmax":
        return
    if model.masks == "averaged":
        yield "model.sem", "the average of softmax masks is constant: set model.masks own, or another model.sem"
    if len(config.branches) == 1:
        yield (
            "model.sem",
            "softmax is computed over several maps, and model.branches has one: add one, or set another model.sem",
        )


def _check_teacher(config: RunConfig) -> Problems:
    if config.distill.teacher == "fused" and config.model.fusion == "none":
        yield "distill.teacher", f"there is no fused head without fusion (method {config.method}): set another teacher"


def _check_smoothing(config: RunConfig) -> Problems:
    if config.method == "label_smoothing" and not config.train.label_smoothing:
        yield "train.label_smoothing", "is 0, so method label_smoothing equals method plain: change one of the two"


def _check_pretrained(config: RunConfig) -> Problems:
    if config.model.pretrained and not config.model.backbone.startswith(TIMM):
        yield (
            "model.pretrained",
            f"{config.model.backbone} has no pretrained weights: set false, or a backbone of timm",
        )


def _check_statistics(config: RunConfig) -> Problems:
    for key in ("mean", "std"):
        if getattr(config.data, key) == "auto" and not config.model.backbone.startswith(TIMM):
            text = f"auto uses the values of timm's weights, and {config.model.backbone} has none: leave it out"
            yield f"data.{key}", text


def _check_size(config: RunConfig) -> Problems:
    known, size = DATASETS.get(config.data.name), config.data.size
    if known is not None and size != known.size:
        yield "data.size", f"expected {known.size}, the image side of {config.data.name} in pixels; found {size}"


def _check_classes(config: RunConfig) -> Problems:
    known, classes = DATASETS.get(config.data.name), config.data.classes
    if known is None and classes is None:
        yield "data.classes", "required for an image folder and not set: set it to the number of classes in train/"
    elif known is not None and classes not in (None, known.num_classes):
        yield "data.classes", f"{config.data.name} has {known.num_classes}, found {classes}: leave it out"


def _check_crops(config: RunConfig) -> Problems:
    if config.data.resized_crop and config.data.crop_padding:
        yield (
            "data.resized_crop",
            f"replaces the padded crop, found data.crop_padding {config.data.crop_padding}: set that to 0",
        )


def _check_batches(config: RunConfig) -> Problems:
    shards, batch, micro = config.data.shards, config.train.batch, config.micro_batch
    if batch % shards:
        yield (
            "train.batch",
            f"{batch} is not divisible by data.shards {shards}; nearest: {nearest_multiples(batch, shards)}",
        )
    elif batch % micro or micro % shards:
        fits = [size for size in range(shards, batch + 1, shards) if batch % size == 0]
        nearest = sorted(sorted(fits, key=lambda size: abs(size - micro))[:4])
        yield (
            "train.micro_batch",
            f"{micro} must divide train.batch {batch} and be divisible by data.shards {shards}; nearest: "
            f"{' or '.join(map(str, nearest))}",
        )


def _check_held_out(config: RunConfig) -> Problems:
    valid, num_classes = config.data.valid, config.data.num_classes
    if num_classes and valid % num_classes:
        nearest = nearest_multiples(valid, num_classes)
        yield "data.valid", f"{valid} is not divisible by the number of classes, {num_classes}; nearest: {nearest}"


def _check_epochs(config: RunConfig, samples: int) -> Problems:
    if not any(_check_batches(config)) and TrainSchedule.from_config(config, samples).steps_per_epoch < 1:
        yield "train.batch", f"{config.train.batch} is too large for {samples} training samples: set a smaller batch"


def _check_milestones(config: RunConfig, samples: int) -> Problems:
    if any((*_check_batches(config), *_check_epochs(config, samples))):
        return
    points, (total_steps, end) = TrainSchedule.from_config(config, samples).milestones, _describe_end(config, samples)
    if any(later <= earlier for earlier, later in pairwise(points)):
        yield "optim.milestones", f"must be increasing, found {', '.join(map(str, config.optim.milestones))}"
    if points and points[-1] >= total_steps:
        yield "optim.milestones", f"{config.optim.milestones[-1]} is not before the end, {end}"


def _check_warmup(config: RunConfig, samples: int) -> Problems:
    if config.optim.warmup is None or any((*_check_batches(config), *_check_epochs(config, samples))):
        return
    timeline, (total_steps, end) = TrainSchedule.from_config(config, samples), _describe_end(config, samples)
    if timeline.warmup_steps >= total_steps:
        yield "optim.warmup", f"{config.optim.warmup} is not before the end, {end}"
    elif timeline.milestones and timeline.warmup_steps > timeline.milestones[0]:
        first = config.optim.milestones[0]
        yield "optim.warmup", f"{config.optim.warmup} ends after the first of optim.milestones, {first}: shorten it"


def _describe_end(config: RunConfig, samples: int) -> tuple[int, str]:
    """Return the number of steps of the whole run, and its description for a message."""
    epochs, steps_per_epoch = config.train.epochs, TrainSchedule.from_config(config, samples).steps_per_epoch
    return epochs * steps_per_epoch, f"{epochs} epochs of {steps_per_epoch} steps"


def _check_test(config: RunConfig) -> Problems:
    if not config.train.evaluate_test and not config.data.valid and config.data.name != FOLDER:
        yield (
            "train.evaluate_test",
            "is false and data.valid is 0, so nothing would be evaluated: change one of the two",
        )


def _check_nesterov(config: RunConfig) -> Problems:
    if not config.optim.nesterov:
        return
    if config.optim.name != "sgd":
        yield "optim.nesterov", f"is for optim.name sgd, found {config.optim.name}: set it to false"
    elif config.optim.momentum == 0:
        yield "optim.nesterov", "needs a momentum above 0, found optim.momentum 0"


def _check_optimizer(config: RunConfig) -> Problems:
    """Yield settings of the other optimizer, which would have no effect."""
    for key, owner in {"momentum": "sgd", "betas": "adamw"}.items():
        value, default = getattr(config.optim, key), OptimConfig.model_fields[key].default
        if config.optim.name != owner and value != default:
            text = f"is for optim.name {owner}, found {config.optim.name}: leave it out, or set optim.name {owner}"
            yield f"optim.{key}", text


def _check_engine(config: RunConfig) -> Problems:
    yield from deepspeed_config.find_deepspeed_problems(config)
    if config.engine.name == "torch":
        yield from _check_ineffective_engine_settings(config.engine)
        return
    engine = config.engine
    if engine.offload and engine.zero_stage < 2:
        yield "engine.offload", f"needs engine.zero_stage 2 or 3, found {engine.zero_stage}"
    if engine.zero_stage and config.train.precision == "fp64":
        yield "train.precision", "ZeRO steps in fp32, found fp64: set engine.zero_stage 0, engine.name torch, or fp32"


def _check_ineffective_engine_settings(engine: EngineConfig) -> Problems:
    for key in ("zero_stage", "offload", "deepspeed"):
        value, default = getattr(engine, key), EngineConfig.model_fields[key].default
        if value != default:
            text = (
                f"is for engine.name deepspeed, found {value} with engine.name torch: set {default}, or engine.name "
                "deepspeed"
            )
            yield f"engine.{key}", text


def _check_compile(config: RunConfig) -> Problems:
    if config.train.compile == "cuda_graphs" and config.micro_batch != config.train.batch:
        yield "train.compile", "cuda_graphs can't accumulate gradients: set true, or leave out train.micro_batch"
    if config.engine.name == "deepspeed" and config.train.compile not in ("auto", False):
        yield "train.compile", "is for engine.name torch; DeepSpeed's engine is not compiled: set auto or false"


def _check_recompute(config: RunConfig) -> Problems:
    if config.train.recompute in ("auto", "none"):
        return
    if config.train.compile not in ("auto", False):
        yield "train.recompute", "torch.compile decides about recomputation itself: set train.compile auto or false"
    if config.engine.name == "deepspeed" and config.engine.zero_stage == 3:
        yield "train.recompute", "does not work with weights sharded by ZeRO stage 3: set engine.zero_stage 2"


def _check_tracker(config: RunConfig) -> Problems:
    for name in dict.fromkeys(config.tracker):
        if (times := config.tracker.count(name)) > 1:
            yield "tracker", f"{name} is listed {times} times: list it once"


_BATCH_KEYS = ("data.shards", "train.batch", "train.micro_batch")
_LENGTH_KEYS = (*_BATCH_KEYS, "data.name", "data.valid", "train.epochs")
_CHECKS: dict[Callable[[RunConfig], Problems], tuple[str, ...]] = {
    _check_branches: ("method", "model.backbone", "model.branches"),
    _check_groups: ("model.backbone", "model.branches", "model.sem_groups"),
    _check_masks: ("model.backbone", "model.branches", "model.fusion", "model.masks", "model.sem"),
    _check_teacher: ("distill.teacher", "method", "model.fusion"),
    _check_smoothing: ("method", "train.label_smoothing"),
    _check_pretrained: ("model.backbone", "model.pretrained"),
    _check_statistics: ("data.mean", "data.std", "model.backbone"),
    _check_size: ("data.name", "data.size"),
    _check_classes: ("data.name", "data.classes"),
    _check_crops: ("data.crop_padding", "data.resized_crop"),
    _check_batches: _BATCH_KEYS,
    _check_held_out: ("data.name", "data.valid"),
    _check_test: ("data.name", "data.valid", "train.evaluate_test"),
    _check_optimizer: ("optim.betas", "optim.momentum", "optim.name"),
    _check_nesterov: ("optim.momentum", "optim.name", "optim.nesterov"),
    _check_engine: ("engine", "train.precision"),
    _check_compile: ("engine", "train.batch", "train.compile", "train.micro_batch"),
    _check_recompute: ("engine", "train.compile", "train.recompute"),
    _check_tracker: ("tracker",),
}
"""Checks, each with the keys that it reads."""
_LENGTH_CHECKS: dict[Callable[[RunConfig, int], Problems], tuple[str, ...]] = {
    _check_epochs: (*_BATCH_KEYS, "data.name", "data.valid"),
    _check_milestones: (*_LENGTH_KEYS, "optim.milestones"),
    _check_warmup: (*_LENGTH_KEYS, "optim.milestones", "optim.warmup"),
}
"""Checks that also need the number of training samples, each with the keys that it reads."""
