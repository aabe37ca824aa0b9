"""What a training run can be told: frozen sections, each field with its meaning, unit and limits."""

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
from fmfsd.config.names import BACKBONES, DATASETS, TIMM, taps
from fmfsd.pretrained_names import weight_source
from fmfsd.tap_names import is_stage

Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
BetaAlpha = Annotated[float, Field(ge=0, le=100)]
PerChannel = tuple[float, float, float]


def usable_path(text: str) -> str:
    """`text`, unless no file can have that path: ValueError."""
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text) or not 1 <= len(text.encode()) <= 4096:
        raise ValueError("a path of 1 to 4096 bytes without control characters")
    if any(len(name.encode()) > 255 for name in text.split("/")):
        raise ValueError("a path whose names have at most 255 bytes each")
    return text


WeightSource = Annotated[str, AfterValidator(weight_source)]
PathText = Annotated[str, AfterValidator(usable_path)]


def backbone_name(name: str) -> str:
    """`name`, if there may be a backbone of that name: ValueError."""
    if name in BACKBONES or (name.startswith(TIMM) and _TIMM_NAME.fullmatch(name)):
        return name
    close = difflib.get_close_matches(name, BACKBONES, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(f"one of {', '.join(BACKBONES)} or timm/NAME{meant}")


_TIMM_NAME = re.compile(r"timm/[a-z0-9_]{1,100}(\.[a-z0-9_]{1,100})?")
_EXAMPLES = [*BACKBONES, "timm/convnext_atto"]
BackboneName = Annotated[str, AfterValidator(backbone_name), WithJsonSchema({"type": "string", "examples": _EXAMPLES})]


class Section(BaseModel):
    """Frozen, strict about types and keys; NaN and infinity are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataConfig(Section):
    """Which images, how they are cut into shards, and what is done to them."""

    name: Literal["cifar10", "cifar100", "synthetic10", "synthetic100", "folder"] = "cifar100"
    """The data set. The synthetic ones are drawn by a formula and need no files; folder: your own images."""
    classes: PositiveInt | None = None
    """How many an image folder has. Unset: the data set's own number."""
    root: PathText | None = None
    """Folder of prepared sets. Unset: the variable FMFSD_DATA, else ./data."""
    size: Literal[32, 64, 224] = 32
    """Side of the images that the network sees, in pixels."""
    images_in: Literal["auto", "memory", "files"] = "auto"
    """Where images are in training: in the workers' memory, or in their files, from which they are read ahead of their
    turn; auto: in memory, unless they would take more than half of it. Results are the same bit for bit."""
    shards: Annotated[int, Field(gt=0, le=65_536)] = 64
    """Logical shards L. The number of workers divides L, and L divides the batch."""
    valid: NonNegativeInt = 0
    """Training samples held out for validation, the same number of each class."""
    crop_padding: Annotated[int, Field(ge=0, le=32)] = 4
    """Pixels added on each side before the random crop back to size; 0: no crop."""
    resized_crop: bool = False
    """Instead of that, a random part of 8 to 100% of the image, at full size (arXiv:1409.4842)."""
    crop_fill: Annotated[int, Field(ge=0, le=255)] = 128
    """Value of the added pixels, and of those that AutoAugment moves in."""
    flip: bool = True
    """Mirror half of the images."""
    autoaugment: bool = False
    """Two more changes a sample, by the policy for CIFAR-10 (arXiv:1805.09501)."""
    cutout: Annotated[int, Field(ge=0, le=32)] = 0
    """Side of the square that is blacked out (arXiv:1708.04552), in pixels; 0: none."""
    mixup: BetaAlpha = 0.0
    """Alpha of the share in which each sample is blended with another (arXiv:1710.09412); 0: none."""
    cutmix: BetaAlpha = 0.0
    """Alpha of the share that is left of each sample when another's rectangle is pasted in (arXiv:1905.04899); 0: none.
    With mixup too, each sample gets one of the two."""
    mean: Literal["auto"] | PerChannel = (0.4914, 0.4822, 0.4465)
    """Subtracted from each channel, as a fraction of full scale; auto: as for the weights of the timm model."""
    std: Literal["auto"] | tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.2023, 0.1994, 0.2010)
    """Each channel is divided by it, as a fraction of full scale; auto: as for the weights of the timm model."""

    @property
    def channel_statistics(self) -> tuple[PerChannel, PerChannel]:
        """Mean and standard deviation of each channel. ValueError while one is auto, before `run_config`."""
        if self.mean == "auto" or self.std == "auto":
            raise ValueError("data.mean or data.std is auto, and only the model's weights tell their values")
        return self.mean, self.std

    @property
    def num_classes(self) -> int:
        """0 for an image folder whose number is not said, which is a contradiction."""
        return DATASETS[self.name].num_classes if self.name in DATASETS else self.classes or 0


class ModelConfig(Section):
    """The backbone, where branches leave it, and how their maps are fused."""

    backbone: BackboneName = "resnet18"
    """Under a stem for the size of the images; of 32 pixels: 3x3, without pooling. timm/NAME: timm's of that name, as
    timm made it; timm/local-dir:PATH: the model whose weights lie in that folder."""
    pretrained: bool | WeightSource = False
    """First weights from timm, fetched once (backbones of timm only); local-dir:PATH: from a folder that timm's
    save_for_hf has written; hf-hub:OWNER/NAME: from a repository of the Hugging Face hub."""
    branches: Literal["auto"] | tuple[str, ...] = "auto"
    """Taps that branches leave from: stage1, ... and, inside a stage, stage2.block1, ...; auto: all stages but one."""
    fusion: Literal["trunk", "side", "both", "none"] = "trunk"
    """The fused map feeds what follows (trunk), a head beside an untouched trunk (side), or what follows and one more
    head (both). none: plain branches."""
    masks: Literal["averaged", "own"] = "averaged"
    """Maps are fused under the mean of their masks, or each under its own (the ablation of averaging)."""
    sem: Literal["sge", "none", "cbam", "softmax"] = "sge"
    """A map's mask: spatial enhancement (arXiv:1905.09646), none, a 7x7 convolution (arXiv:1807.06521), or spatial
    enhancement that the maps share out by a softmax, which needs masks: own."""
    branch: Literal["sepconv", "bottleneck", "attention"] = "sepconv"
    """A branch's layers: separable with enhancement (FMFSD), one bottleneck (BYOT 2019), separable after attention
    (BYOT 2022; without fusion the branch next to the deepest head has no feature loss, as in its release)."""
    sem_groups: Literal["auto"] | PositiveInt = "auto"
    """Groups of spatial enhancement; auto: the largest common divisor, at most 32, of all maps' channels."""
    sync_bn: Literal["auto"] | bool = "auto"
    """Batch statistics over all workers; auto: with more than one. Off, results depend on the number of workers."""


class DistillConfig(Section):
    """What the heads learn from one another, and with which weights."""

    alpha: Fraction = 0.3
    """Share of the soft-target loss in a branch's loss; the label loss has the rest."""
    beta: NonNegativeFloat = 0.03
    """Weight of the feature loss; 0: no feature layers are made."""
    temperature: PositiveFloat = 3.0
    """Divides logits before the softmax; larger is softer."""
    t_squared: bool = False
    """The soft-target loss times temperature squared (arXiv:1503.02531)."""
    teacher: Literal["deepest", "ensemble", "fused", "all_pairs"] = "deepest"
    """Who is learnt from: the deepest head, the mean of all (arXiv:2104.00299), the fused head (arXiv:1904.09058), or
    each head by every other (arXiv:1906.00675). Who learns includes the deepest head with all but the first."""
    feature: Literal["batch_norm", "mse", "none"] = "batch_norm"
    """Distance of features to the deepest one: the Frobenius norm over the global batch, the mean square, or none."""
    label_weight: NonNegativeFloat = 1.0
    """Multiplies the branches' label losses, not the deepest head's."""

    @property
    def has_feature_loss(self) -> bool:
        return self.beta > 0 and self.feature != "none"


class OptimConfig(Section):
    """The optimizer and its learning rate over time."""

    name: Literal["sgd", "adamw"] = "sgd"
    """SGD, or AdamW (arXiv:1711.05101)."""
    lr: PositiveFloat = 0.1
    """Learning rate at the start, after the warm-up."""
    base_batch: Annotated[int, Field(gt=0, le=1_048_576)] | None = None
    """Batch that lr is meant for; lr * train.batch / base_batch is used (arXiv:1706.02677). Unset: lr as it stands."""
    warmup: DurationField | None = None
    """How long the rate grows, by the same amount each step, until it is the whole (arXiv:1706.02677). Unset: not."""
    momentum: BelowOne = 0.9
    """Share of the last step's direction that is kept (sgd)."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """Shares of the running means of gradients and of their squares that are kept (adamw)."""
    weight_decay: NonNegativeFloat = 5e-4
    """Times each weight, added to its gradient; with adamw, times the rate too, taken from the weight."""
    decay_norms: bool = True
    """Also of BN, of spatial enhancement's gamma and beta, and of biases; false: of none that is a vector."""
    nesterov: bool = False
    """Momentum in Nesterov's form (sgd)."""
    milestones: tuple[DurationField, ...] = (Duration(66, "epoch"), Duration(133, "epoch"), Duration(190, "epoch"))
    """Points after which the learning rate is multiplied by gamma."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor on the learning rate at each milestone."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the whole gradient; unset: no clipping."""

    @property
    def kept_per_weight(self) -> int:
        """So many values the optimizer keeps for each weight."""
        return 2 if self.name == "adamw" else int(self.momentum > 0)


class TrainConfig(Section):
    """How long, in which batches and in which arithmetic."""

    epochs: Annotated[int, Field(gt=0, le=1_000_000)] = 200
    """Times that the training set is gone through."""
    max_steps: PositiveInt | None = None
    """End after so many steps, if that is earlier."""
    init_from: PathText | None = None
    """First weights: of a run (its newest checkpoint), a checkpoint, or a .safetensors file; averaged ones where there
    are any. Unset: by the seed."""
    batch: Annotated[int, Field(gt=0, le=1_048_576)] = 128
    """Samples a step, over all workers."""
    micro_batch: PositiveInt | None = None
    """Samples a forward pass, over all workers; BN and the feature norm are taken over it. Unset: the batch."""
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """bf16 and fp16 are autocast with fp32 weights, fp16 with a loss scale. fp32 means TF32 off."""
    channels_last: bool = False
    """Memory layout of images and maps; same results to rounding."""
    compile: Literal["auto", "cuda_graphs"] | bool = "auto"
    """Network and losses as one program, by torch.compile; the first step waits for it. auto: on a GPU. cuda_graphs:
    and launched at once (one GPU, no micro-batches)."""
    recompute: Literal["auto", "none", "branches", "all"] = "auto"
    """What computes its inner maps twice instead of keeping them: the branches' paths, or these and the backbone's
    blocks. Less memory, the same results bit for bit (arXiv:1604.06174). auto: branches, where torch.compile does not
    decide it itself and weights are not divided by ZeRO."""
    label_smoothing: BelowOne = 0.0
    """Share of each label that is spread over all classes."""
    ema: BelowOne | None = None
    """Share of the averaged weights that a step keeps; they are what is evaluated, judged and kept. Unset: none."""
    evaluate_every: DurationField = Duration(1, "epoch")
    """How often every head is tried on the held-out samples or, without any, on the test set."""
    evaluate_test: bool = True
    """With held-out samples: also look at the test set once, at the end. A search does that for its winners alone."""
    evaluate_batch: PositiveInt = 500
    """Samples a worker takes at once in an evaluation."""
    log_every: DurationField = Duration(50, "step")
    """How often the running means of the losses are written."""
    deterministic: bool = False
    """Only algorithms whose sums have one order, so that GPUs repeat a run bit for bit; CPUs always do."""


class CheckpointConfig(Section):
    """When the state is saved, beside at the end, and how many saves are kept."""

    every_epochs: PositiveInt | None = 1
    """A checkpoint after every so many epochs."""
    every_steps: PositiveInt | None = None
    """And after every so many steps."""
    every_minutes: PositiveFloat | None = None
    """And when so many minutes have passed since the last one."""
    keep: PositiveInt = 2
    """The newest so many stay, and with a validation split the best one on it."""


class EngineConfig(Section):
    """Who owns the optimizer step. With each, a run comes to the same but for rounding, and can be gone on with.

    `engine: deepspeed` is short for its name.
    """

    name: Literal["torch", "deepspeed"] = "torch"
    """PyTorch, with several workers by DDP; or DeepSpeed."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed divides among the workers (ZeRO, arXiv:1910.02054): nothing, the optimizer's state, the gradients
    too, the weights too."""
    offload: bool = False
    """The optimizer's state and step are the CPU's (stages 2 and 3)."""
    deepspeed: dict[str, Any] = {}
    """Further settings by DeepSpeed's own names, such as `zero_optimization: {overlap_comm: true}`."""


class RunConfig(Section):
    """One training run. Where it runs, and on how many workers, is not part of it."""

    method: Literal[
        "fmfsd", "fmfsd_side", "byot", "byot_attention", "deep_supervision", "dks", "eed", "plain", "label_smoothing"
    ] = "fmfsd"
    """What is trained: names for values of other keys (fmfsd/config/methods.py)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides initial weights, order and augmentation."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    distill: DistillConfig = DistillConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracker: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Who is shown the records too, beside metrics.jsonl. One that fails is a warning."""

    @property
    def branches(self) -> Literal["auto"] | tuple[str, ...]:
        """The taps, shallow to deep; as they stand where only the backbone itself can tell."""
        asked, known = self.model.branches, taps(self.model.backbone)
        if not known:
            return asked
        return tuple(tap for tap in known if (is_stage(tap) if asked == "auto" else tap in asked))

    @property
    def micro_batch(self) -> int:
        return self.train.micro_batch or self.train.batch

    @property
    def full_rate(self) -> float:
        """The learning rate between the warm-up and the first milestone."""
        optim = self.optim
        return optim.lr * self.train.batch / optim.base_batch if optim.base_batch else optim.lr
