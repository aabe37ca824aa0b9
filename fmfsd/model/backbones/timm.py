"""timm models as backbones: their last feature maps, at most four, are the ends of the stages.

A model that can be split at its maps becomes a sequence of stages, so that a fused map can be fed back into it. Of
other models the maps can only be read. Models whose results would depend on the number of workers are rejected.
"""

import difflib
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode

from fmfsd.errors import ConfigError
from fmfsd.model.backbones.backbone import ExternalLayers, Trunk, Visit
from fmfsd.model.backbones.split import Cut, SplitBackbone, find_cuts, split_at
from fmfsd.model.backbones.timm_weights import ChannelStatistics, load_channel_statistics, load_pretrained_config
from fmfsd.pretrained_names import HUB

MAX_STAGES = 4
Shape = tuple[int, int]
"""Channels of a map, and its side in pixels."""


class MapsBackbone(Trunk):
    """A model that returns all its maps at the end of its forward pass: the return value of `visit` is not fed back."""

    def __init__(
        self, model: nn.Module, channels: Sequence[Sequence[int]], strides: Sequence[int], *, channels_last: bool
    ) -> None:
        super().__init__(channels, strides)
        self.model = ExternalLayers(model)
        self._channels_last = channels_last

    def forward(self, images: Tensor, visit: Visit = lambda _name, x: x) -> Tensor:
        """(B, 3, H, W) -> the last map."""
        maps = self.model(images)
        for number, point in enumerate(self.tap_points, -len(self.tap_points)):
            x = maps[number].permute(0, 3, 1, 2) if self._channels_last else maps[number]
            x = visit(point.name, x)
        return x


def timm_backbone(name: str, size: int, *, pretrained: bool | str) -> Trunk:
    """Return timm's model `name`, without its classifier, for images of `size` x `size` pixels.

    Initial weights are random; or, if `pretrained`, timm's own from its cache, downloaded if missing; or those of the
    folder or repository that `pretrained` names. Raises ConfigError, with the reason, if timm or the model is missing
    or the model can't be trained here.
    """
    timm = _import_timm(name)
    _require_known(timm, name, pretrained=pretrained)
    with torch.device("meta"):
        meta_model = _build_model(timm, name, size, pretrained=False)
        shapes = _shapes(name, meta_model, size)
        cuts = find_cuts(meta_model, torch.empty(2, 3, size, size), MAX_STAGES + 1, partial(_as_map, meta_model))
        _require_usable(name, _trunk(meta_model, cuts, shapes, size), size)
    return _trunk(_build_model(timm, name, size, pretrained=pretrained), cuts, shapes, size)


def load_weight_statistics(name: str, *, pretrained: bool | str) -> ChannelStatistics:
    """Return the channel statistics that the weights of timm's model `name` were trained with. Raises ConfigError."""
    timm = _import_timm(name)
    _require_known(timm, name, pretrained=False)
    try:
        statistics = load_channel_statistics(timm, name, pretrained)
    except Exception as error:  # from any package that timm uses
        raise _config_error(name, f"has no weights to read statistics from ({_first_line(error)})") from error
    if statistics is None:
        raise _config_error(name, "has no channel statistics: set data.mean and data.std")
    return statistics


def _config_error(name: str, reason: str) -> ConfigError:
    return ConfigError(f"model.backbone: timm/{name} {reason}")


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise _config_error(
            name, f"needs a package that is missing ({error.name}): pip install 'fmfsd[timm]'"
        ) from None
    return timm


def _require_known(timm: Any, name: str, *, pretrained: bool | str) -> None:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        advice = f"; similar names: {', '.join(f'timm/{each}' for each in near)}" if near else ""
        raise _config_error(name, f"is not a model of timm {timm.__version__}{advice}")
    if pretrained is True and not timm.models.is_model_pretrained(name):
        raise _config_error(name, "has no pretrained weights: set model.pretrained false")


def _build_model(timm: Any, name: str, size: int, *, pretrained: bool | str) -> nn.Module:
    try:
        model: nn.Module = _create_model(timm, name, size, pretrained=pretrained)
    except Exception as error:  # from any package that timm uses
        problem = "can't load its weights" if pretrained else f"can't be built for images of {size} pixels"
        downloads = pretrained is True or str(pretrained).startswith(HUB)
        advice = "; timm downloads them to HF_HOME: run once on a machine with network access" if downloads else ""
        raise _config_error(name, f"{problem} ({_first_line(error)}){advice}") from error
    _split_normalisation(timm, model)
    return model


def _create_model(timm: Any, name: str, size: int, *, pretrained: bool | str) -> nn.Module:
    """Create timm's model, without dropout and drop path if it has arguments for them."""
    create = partial(timm.create_model, name, pretrained=bool(pretrained), features_only=True)
    if isinstance(pretrained, str):
        create = partial(create, pretrained_cfg=load_pretrained_config(timm, name, pretrained))
    sized = {"img_size": size} if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False) else {}
    for no_dropout in ({"drop_rate": 0.0, "drop_path_rate": 0.0}, {"drop_rate": 0.0}):
        try:
            return create(**no_dropout, **sized)
        except TypeError as error:
            if "unexpected keyword" not in str(error):
                raise
    return create(**sized)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(": ")


def _split_normalisation(timm: Any, model: nn.Module) -> None:
    """Replace timm's fused batch norm and activation by two layers.

    Engines can synchronise an nn.BatchNorm2d over all workers, but not timm's BatchNormAct2d.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is timm.layers.BatchNormAct2d:
                setattr(module, name, _split_norm(child))


def _split_norm(norm: Any) -> nn.Sequential:
    bare = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    bare.weight, bare.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(bare, name, buffer)
    return nn.Sequential(bare, norm.drop, norm.act)


def _shapes(name: str, model: nn.Module, size: int) -> list[Shape]:
    """Return the shapes of the last maps. Raises ConfigError if they are not usable."""
    try:
        maps = model(torch.empty(2, 3, size, size))[-MAX_STAGES:]
    except Exception as error:  # from any layer
        raise _config_error(
            name, f"does not accept images of {size} pixels ({_first_line(error)}): set data.size"
        ) from error
    shapes = [_shape(name, each, _is_channels_last(model)) for each in maps]
    sides = [side for _, side in shapes]
    if len(shapes) < 2 or any(before % after for before, after in pairwise(sides)):
        raise _config_error(
            name,
            f"has maps with sides of {', '.join(map(str, sides))} pixels for images of {size}, but needs two or more "
            "maps, each side a whole multiple of the next: choose another backbone or data.size",
        )
    return shapes


def _shape(name: str, output: Any, channels_last: bool) -> Shape:
    if not isinstance(output, Tensor) or output.dim() != 4:
        raise _config_error(name, "has outputs that are not maps (B, C, H, W): choose another backbone")
    height, width, channels = output.shape[1:] if channels_last else (*output.shape[2:], output.shape[1])
    if height != width:
        raise _config_error(
            name, f"has maps of {height} x {width} pixels for square images: choose another backbone or data.size"
        )
    return channels, height


def _is_channels_last(model: nn.Module) -> bool:
    return getattr(model, "output_fmt", None) == "NHWC"


def _as_map(model: nn.Module, output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2) if _is_channels_last(model) else output


def _trunk(model: nn.Module, cuts: Sequence[Cut], shapes: Sequence[Shape], size: int) -> Trunk:
    """Return the model split at the cuts, or as a whole if there are none."""
    sides = [size, *(side for _, side in shapes)]
    strides = [before // after for before, after in pairwise(sides)]
    channels = [[count] for count, _ in shapes]
    if not cuts:
        return MapsBackbone(model, channels, strides, channels_last=_is_channels_last(model))
    before, stages = [ExternalLayers()] * (len(cuts) == len(shapes)), split_at(model, cuts)
    stem, *stages = *before, *stages
    views = [cut.view for cut in cuts[-len(shapes) :]]
    return SplitBackbone(stem, stages, views, channels, strides)


def _require_usable(name: str, trunk: Trunk, size: int) -> None:
    """Raise ConfigError if the model can't be trained here, using one training pass on the meta device."""
    layers = dict(trunk.named_modules())
    if unsupported := next((type(each).__name__ for each in layers.values() if _is_unsupported_norm(each)), None):
        raise _config_error(
            name,
            f"uses {unsupported} for normalisation, whose results depend on the number of workers: "
            "choose another backbone",
        )
    visited: list[tuple[Tensor, int]] = []

    def visit(_name: str, x: Tensor) -> Tensor:
        visited.append((x, x._version))
        return x

    with _RandomOps() as random_ops:
        deepest = trunk.train()(torch.empty(2, 3, size, size), visit)
    dropouts = [type(each).__name__ for each in layers.values() if isinstance(each, _DropoutNd) and each.p > 0]
    if sources := [*dropouts, *random_ops.names]:
        raise _config_error(
            name,
            f"draws random numbers in training ({sources[0]}), which would depend on the number of workers: "
            "choose another backbone",
        )
    if any(x._version != version for x, version in visited):
        raise _config_error(
            name, "modifies the map at the end of a stage in place, so a branch can't use it: choose another backbone"
        )
    if unused := _find_unused(trunk, deepest):
        raise _config_error(
            name,
            f"has {len(unused)} parameters that its last map does not use, such as {unused[0]}: "
            "choose another backbone",
        )


def _is_unsupported_norm(layer: nn.Module) -> bool:
    """Return whether the layer has batch statistics and is not an `nn.BatchNorm2d` that engines can synchronise."""
    has_statistics = any(name.startswith("running_") for name, _ in layer.named_buffers(recurse=False))
    if type(layer) is nn.BatchNorm2d:
        return not (has_statistics and layer.affine and layer.momentum is not None)
    return has_statistics or isinstance(layer, _NormBase)


class _RandomOps(TorchDispatchMode):
    """Records operations that draw random numbers. Attention's dropout is not counted: a dropout layer shows it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and not any(
            part in func.name() for part in ("_dot_", "_sdp")
        ):
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def _find_unused(trunk: nn.Module, deepest: Tensor) -> list[str]:
    parameters = {name: each for name, each in trunk.named_parameters() if each.requires_grad}
    gradients = torch.autograd.grad(deepest.sum(), list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]
