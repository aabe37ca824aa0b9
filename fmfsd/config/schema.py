"""Schema of the training config: frozen sections; each field with its meaning, unit and limits."""

import difflib
import re
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    WithJsonSchema,
)

from fmfsd.config.durations import Duration, DurationField
from fmfsd.config.names import BACKBONES, DATASETS, TIMM, list_taps
from fmfsd.pretrained_names import validate_weight_source
from fmfsd.tap_names import is_stage

Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
BetaAlpha = Annotated[float, Field(ge=0, le=100)]
PerChannel = tuple[float, float, float]


def validate_path(text: str) -> str:
    """Return `text`, or raise ValueError if no file can have that path."""
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text) or not 1 <= len(text.encode()) <= 4096:
        raise ValueError("a path of 1 to 4096 bytes without control characters")
    if any(len(name.encode()) > 255 for name in text.split("/")):
        raise ValueError("a path whose names have at most 255 bytes each")
    return text


WeightSource = Annotated[str, AfterValidator(validate_weight_source)]
PathText = Annotated[str, AfterValidator(validate_path)]


def validate_backbone_name(name: str) -> str:
    """Return `name`, or raise ValueError if no backbone can have that name."""
    if name in BACKBONES or (name.startswith(TIMM) and _TIMM_NAME.fullmatch(name)):
        return name
    close = difflib.get_close_matches(name, BACKBONES, n=1)
    suggestion = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(f"one of {', '.join(BACKBONES)} or timm/NAME{suggestion}")


_TIMM_NAME = re.compile(r"timm/[a-z0-9_]{1,100}(\.[a-z0-9_]{1,100})?")
_EXAMPLES = [*BACKBONES, "timm/convnext_atto"]
BackboneName = Annotated[
    str, AfterValidator(validate_backbone_name), WithJsonSchema({"type": "string", "examples": _EXAMPLES})
]


class ConfigSection(BaseModel):
    """Base of all config sections: frozen, strict about types and keys; rejects NaN and infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataConfig(ConfigSection):
    """The data set, its shards, and augmentation."""

    name: Literal["cifar10", "cifar100", "synthetic10", "synthetic100", "folder"] = "cifar100"
    """The data set. The synthetic ones are generated and need no files; folder: your own images."""
    classes: PositiveInt | None = None
    """Number of classes of an image folder. Unset: the data set's own number."""
    root: PathText | None = None
    """Folder of prepared data sets. Unset: the environment variable FMFSD_DATA, else ./data."""
    size: Literal[32, 64, 224] = 32
    """Side of the network's input images, in pixels."""
    images_in: Literal["auto", "memory", "files"] = "auto"
    """Where training images are stored: in the workers' memory, or in the shard files with read-ahead. auto: in memory,
    unless they need more than half of it. Results are bit-identical."""
    shards: Annotated[int, Field(gt=0, le=65_536)] = 64
    """Number of logical shards L. L must be divisible by the number of workers, and the batch by L."""
    valid: NonNegativeInt = 0
    """Training samples held out for validation, the same number of each class."""
    crop_padding: Annotated[int, Field(ge=0, le=32)] = 4
    """Padding in pixels on each side before the random crop; 0: no crop."""
    resized_crop: bool = False
    """Random resized crop of 8 to 100% of the image's area (arXiv:1409.4842), instead of the padded crop."""
    crop_fill: Annotated[int, Field(ge=0, le=255)] = 128
    """Fill value of padded pixels, and of pixels that AutoAugment's geometric operations leave empty."""
    flip: bool = True
    """Random horizontal flip with probability 0.5."""
    autoaugment: bool = False
    """AutoAugment with the CIFAR-10 policy (arXiv:1805.09501)."""
    cutout: Annotated[int, Field(ge=0, le=32)] = 0
    """Side of the Cutout square (arXiv:1708.04552), in pixels; 0: no Cutout."""
    mixup: BetaAlpha = 0.0
    """Mixup alpha (arXiv:1710.09412): parameter of the beta distribution; 0: no mixup."""
    cutmix: BetaAlpha = 0.0
    """CutMix alpha (arXiv:1905.04899): parameter of the beta distribution; 0: no CutMix. With mixup too, each sample
    gets one of the two."""
    mean: Literal["auto"] | PerChannel = (0.4914, 0.4822, 0.4465)
    """Mean of each channel for normalization, for images in [0, 1]; auto: the values of the timm model's weights."""
    std: Literal["auto"] | tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.2023, 0.1994, 0.2010)
    """Standard deviation of each channel for normalization, for images in [0, 1]; auto: the values of the timm model's
    weights."""

    @property
    def channel_statistics(self) -> tuple[PerChannel, PerChannel]:
        """Return mean and standard deviation per channel. ValueError while one is auto, before `load_run_config`."""
        if self.mean == "auto" or self.std == "auto":
            raise ValueError("data.mean or data.std is auto and not resolved yet; the values come from timm's weights")
        return self.mean, self.std

    @property
    def num_classes(self) -> int:
        """Return the number of classes; 0 for an image folder without data.classes, which the checks report."""
        return DATASETS[self.name].num_classes if self.name in DATASETS else self.classes or 0


class ModelConfig(ConfigSection):
    """The backbone, the taps of its branches, and the fusion of their feature maps."""

    backbone: BackboneName = "resnet18"
    """The backbone. The stem fits the image size (32 pixels: 3x3 convolution without pooling). timm/NAME: timm's model,
    unchanged; timm/local-dir:PATH: the model whose weights are in that folder."""
    pretrained: bool | WeightSource = False
    """Start from timm's pretrained weights, downloaded once (timm backbones only). local-dir:PATH: from a folder that
    timm's save_for_hf has written; hf-hub:OWNER/NAME: from a repository of the Hugging Face hub."""
    branches: Literal["auto"] | tuple[str, ...] = "auto"
    """Taps of the branches: stage1, ... and, inside a stage, stage2.block1, ...; auto: all stages but the last."""
    fusion: Literal["trunk", "side", "both", "none"] = "trunk"
    """Where the fused map goes: into the next stage (trunk), into an additional head next to an unchanged trunk (side),
    or into both. none: branches without fusion."""
    masks: Literal["averaged", "own"] = "averaged"
    """Each map is multiplied by the average of all masks, or by its own mask (the ablation of averaging)."""
    sem: Literal["sge", "none", "cbam", "softmax"] = "sge"
    """Spatial enhancement module that computes a map's mask: SGE (arXiv:1905.09646), none, CBAM's 7x7 convolution
    (arXiv:1807.06521), or SGE with a softmax over the maps, which needs masks: own."""
    branch: Literal["sepconv", "bottleneck", "attention"] = "sepconv"
    """Layers of a branch: separable convolutions with spatial enhancement (FMFSD), one bottleneck (BYOT 2019), or
    separable convolutions after attention (BYOT 2022; without fusion the branch next to the deepest head has no feature
    loss, as in its release)."""
    sem_groups: Literal["auto"] | PositiveInt = "auto"
    """Groups of spatial enhancement; auto: the largest common divisor of all maps' channels that is at most 32."""
    sync_bn: Literal["auto"] | bool = "auto"
    """Synchronized BatchNorm over all workers; auto: with more than one worker. Without it, results depend on the
    number of workers."""


class DistillConfig(ConfigSection):
    """Self-distillation losses and their weights."""

    alpha: Fraction = 0.3
    """Weight of the soft-target loss of a branch; its label loss has the weight 1 - alpha."""
    beta: NonNegativeFloat = 0.03
    """Weight of the feature loss; 0: no feature layers."""
    temperature: PositiveFloat = 3.0
    """Distillation temperature: divides the logits before the softmax."""
    t_squared: bool = False
    """Multiply the soft-target loss by temperature squared (arXiv:1503.02531)."""
    teacher: Literal["deepest", "ensemble", "fused", "all_pairs"] = "deepest"
    """Teacher: the deepest head, the mean of all heads' logits (arXiv:2104.00299), the fused head (arXiv:1904.09058),
    or for each head all others (arXiv:1906.00675). With all but the first, the deepest head is a student too."""
    feature: Literal["batch_norm", "mse", "none"] = "batch_norm"
    """Feature loss against the deepest feature: Frobenius norm over the global batch, mean squared error, or none."""
    label_weight: NonNegativeFloat = 1.0
    """Weight of the branches' label losses; the deepest head's label loss has the weight 1."""

    @property
    def has_feature_loss(self) -> bool:
        return self.beta > 0 and self.feature != "none"


class OptimConfig(ConfigSection):
    """The optimizer and its learning rate schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    """SGD, or AdamW (arXiv:1711.05101)."""
    lr: PositiveFloat = 0.1
    """Learning rate before the first milestone, after the warm-up."""
    base_batch: Annotated[int, Field(gt=0, le=1_048_576)] | None = None
    """Batch size of the linear scaling rule: the learning rate is lr * train.batch / base_batch (arXiv:1706.02677).
    Unset: no scaling."""
    warmup: DurationField | None = None
    """Length of the linear warm-up (arXiv:1706.02677). Unset: no warm-up."""
    momentum: BelowOne = 0.9
    """SGD momentum."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """AdamW betas."""
    weight_decay: NonNegativeFloat = 5e-4
    """Weight decay (L2; decoupled for AdamW)."""
    decay_norms: bool = True
    """Apply weight decay to 1-D parameters too: BN, gamma and beta of spatial enhancement, and biases."""
    nesterov: bool = False
    """Nesterov momentum (SGD only)."""
    milestones: tuple[DurationField, ...] = (Duration(66, "epoch"), Duration(133, "epoch"), Duration(190, "epoch"))
    """Times at which the learning rate is multiplied by gamma."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of the learning rate at each milestone."""
    clip_norm: PositiveFloat | None = None
    """Maximum global norm of the gradient. Unset: no gradient clipping."""

    @property
    def state_per_weight(self) -> int:
        """Return the number of values per weight in the optimizer's state."""
        return 2 if self.name == "adamw" else int(self.momentum > 0)


class TrainConfig(ConfigSection):
    """Length, batch size, precision and evaluation of the training."""

    epochs: Annotated[int, Field(gt=0, le=1_000_000)] = 200
    """Number of epochs."""
    max_steps: PositiveInt | None = None
    """Maximum number of steps. Unset: no limit besides epochs."""
    init_from: PathText | None = None
    """Initial weights: from a run (its newest checkpoint), a checkpoint, or a .safetensors file; EMA weights if the
    source has them. Unset: random initialization by the seed."""
    batch: Annotated[int, Field(gt=0, le=1_048_576)] = 128
    """Global batch size: samples per step over all workers."""
    micro_batch: PositiveInt | None = None
    """Samples per forward pass over all workers (gradient accumulation); BN statistics and the feature norm are
    computed over the micro-batch. Unset: train.batch."""
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """bf16 and fp16: autocast with fp32 weights; fp16 with loss scaling. fp32: without TF32."""
    channels_last: bool = False
    """channels_last memory format; the same results up to rounding."""
    compile: Literal["auto", "cuda_graphs"] | bool = "auto"
    """torch.compile for network and losses; the first step takes longer. auto: on GPUs. cuda_graphs: with CUDA graphs
    too (one GPU, no micro-batches)."""
    recompute: Literal["auto", "none", "branches", "all"] = "auto"
    """Activation checkpointing (arXiv:1604.06174) of the branches, or of the branches and the backbone's blocks: less
    memory, bit-identical results. auto: branches, unless torch.compile is used or ZeRO stage 3 shards the weights."""
    label_smoothing: BelowOne = 0.0
    """Label smoothing."""
    ema: BelowOne | None = None
    """EMA decay of the weights; the averaged weights are evaluated and exported. Unset: no EMA."""
    evaluate_every: DurationField = Duration(1, "epoch")
    """Evaluation interval: all heads, on the validation split or, without one, on the test set."""
    evaluate_test: bool = True
    """With a validation split: evaluate on the test set once, at the end. A search does that for its winners only."""
    evaluate_batch: PositiveInt = 500
    """Batch size of each worker in an evaluation."""
    log_every: DurationField = Duration(50, "step")
    """Logging interval of the running means of the losses."""
    deterministic: bool = False
    """Use deterministic algorithms only, so that a run on GPUs is reproducible bit for bit; on CPUs it always is."""


class CheckpointConfig(ConfigSection):
    """When checkpoints are saved, in addition to the one at the end, and how many remain."""

    every_epochs: PositiveInt | None = 1
    """Save a checkpoint every N epochs."""
    every_steps: PositiveInt | None = None
    """Save a checkpoint every N steps."""
    every_minutes: PositiveFloat | None = None
    """Save a checkpoint N minutes after the last one."""
    keep: PositiveInt = 2
    """Number of newest checkpoints that are not deleted; with a validation split, the best checkpoint stays as well."""


class EngineConfig(ConfigSection):
    """The training engine. Results are the same up to rounding, and a run can be resumed with another engine.

    `engine: deepspeed` is short for `engine: {name: deepspeed}`.
    """

    name: Literal["torch", "deepspeed"] = "torch"
    """PyTorch (DDP with several workers) or DeepSpeed."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage (arXiv:1910.02054): 0 shards nothing, 1 the optimizer state, 2 also the gradients, 3 also the
    weights."""
    offload: bool = False
    """Offload the optimizer state and step to the CPU (stages 2 and 3)."""
    deepspeed: dict[str, Any] = {}
    """Additional DeepSpeed settings under DeepSpeed's names, such as `zero_optimization: {overlap_comm: true}`."""


class RunConfig(ConfigSection):
    """Config of one training run. The hosts and the number of workers are not part of it."""

    method: Literal[
        "fmfsd", "fmfsd_side", "byot", "byot_attention", "deep_supervision", "dks", "eed", "plain", "label_smoothing"
    ] = "fmfsd"
    """Training method: a set of values for other keys (fmfsd/config/methods.py)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Random seed of initial weights, sampling order and augmentation."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    distill: DistillConfig = DistillConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracker: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Experiment trackers that receive the metrics in addition to metrics.jsonl. A tracker that fails causes a warning
    only."""

    @property
    def branches(self) -> Literal["auto"] | tuple[str, ...]:
        """Return the taps of the branches, shallow to deep; unresolved if only the backbone itself knows its taps."""
        configured, known = self.model.branches, list_taps(self.model.backbone)
        if not known:
            return configured
        return tuple(tap for tap in known if (is_stage(tap) if configured == "auto" else tap in configured))

    @property
    def micro_batch(self) -> int:
        return self.train.micro_batch or self.train.batch

    @property
    def peak_lr(self) -> float:
        """Return the learning rate between the warm-up and the first milestone."""
        optim = self.optim
        return optim.lr * self.train.batch / optim.base_batch if optim.base_batch else optim.lr
