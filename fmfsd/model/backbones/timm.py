"""Models of timm as backbones: their last feature maps, four at most, end the stages.

A model that can be cut at its maps is made of stages, so that a map can feed what follows it. Others only show their
maps. What would make results depend on the number of workers is refused.
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
from fmfsd.model.backbones.backbone import Foreign, Trunk, Visit
from fmfsd.model.backbones.split import Cut, CutBackbone, find_cuts, parts_between
from fmfsd.model.backbones.timm_weights import ChannelStatistics, channel_statistics, pretrained_config
from fmfsd.pretrained_names import HUB

MOST_STAGES = 4
Shape = tuple[int, int]
"""Channels of a map, and its side in pixels."""


class MapsBackbone(Trunk):
    """A model that gives all its maps at its end: what `visit` says feeds nothing."""

    def __init__(
        self, model: nn.Module, channels: Sequence[Sequence[int]], strides: Sequence[int], *, channels_last: bool
    ) -> None:
        super().__init__(channels, strides)
        self.model = Foreign(model)
        self._channels_last = channels_last

    def forward(self, images: Tensor, visit: Visit = lambda _place, x: x) -> Tensor:
        """(B, 3, H, W) -> the last map."""
        maps = self.model(images)
        for number, place in enumerate(self.places, -len(self.places)):
            x = maps[number].permute(0, 3, 1, 2) if self._channels_last else maps[number]
            x = visit(place.name, x)
        return x


def timm_backbone(name: str, size: int, *, pretrained: bool | str) -> Trunk:
    """timm's model `name`, without its classifier, for images of `size` pixels a side.

    First weights are drawn or, if `pretrained`, timm's own from its cache, into which timm fetches what is not there;
    or those of the folder or repository that `pretrained` names. ConfigError, with the reason, if timm or the model is
    not there or is nothing that can be trained here.
    """
    timm = _package(name)
    _require_known(timm, name, pretrained=pretrained)
    with torch.device("meta"):
        pretended = _made(timm, name, size, pretrained=False)
        shapes = _shapes(name, pretended, size)
        cuts = find_cuts(pretended, torch.empty(2, 3, size, size), MOST_STAGES + 1, partial(_as_map, pretended))
        _require_usable(name, _trunk(pretended, cuts, shapes, size), size)
    return _trunk(_made(timm, name, size, pretrained=pretrained), cuts, shapes, size)


def statistics_of_weights(name: str, *, pretrained: bool | str) -> ChannelStatistics:
    """Channel statistics that the weights of timm's model `name` were trained with. ConfigError if there are none."""
    timm = _package(name)
    _require_known(timm, name, pretrained=False)
    try:
        found = channel_statistics(timm, name, pretrained)
    except Exception as error:  # of any package that timm uses
        raise _refusal(name, f"has no weights to read statistics from ({_first_line(error)})") from error
    if found is None:
        raise _refusal(name, "has no channel statistics of its own: set data.mean and data.std")
    return found


def _refusal(name: str, reason: str) -> ConfigError:
    return ConfigError(f"model.backbone: timm/{name} {reason}")


def _package(name: str) -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise _refusal(name, f"needs a package that is missing ({error.name}): pip install 'fmfsd[timm]'") from None
    return timm


def _require_known(timm: Any, name: str, *, pretrained: bool | str) -> None:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        advice = f"; near: {', '.join(f'timm/{each}' for each in near)}" if near else ""
        raise _refusal(name, f"is no model of timm {timm.__version__}{advice}")
    if pretrained is True and not timm.models.is_model_pretrained(name):
        raise _refusal(name, "has no weights to fetch: set model.pretrained false")


def _made(timm: Any, name: str, size: int, *, pretrained: bool | str) -> nn.Module:
    try:
        model: nn.Module = _created(timm, name, size, pretrained=pretrained)
    except Exception as error:  # of any package that timm uses
        what = "gets no weights" if pretrained else f"can't be made for images of {size} pixels"
        fetched = pretrained is True or str(pretrained).startswith(HUB)
        advice = "; timm fetches them where there is a network, and keeps them in HF_HOME" if fetched else ""
        raise _refusal(name, f"{what} ({_first_line(error)}){advice}") from error
    _split_normalisation(timm, model)
    return model


def _created(timm: Any, name: str, size: int, *, pretrained: bool | str) -> nn.Module:
    """Without its random layers, as far as it can be told so."""
    create = partial(timm.create_model, name, pretrained=bool(pretrained), features_only=True)
    if isinstance(pretrained, str):
        create = partial(create, pretrained_cfg=pretrained_config(timm, name, pretrained))
    sized = {"img_size": size} if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False) else {}
    for still in ({"drop_rate": 0.0, "drop_path_rate": 0.0}, {"drop_rate": 0.0}):
        try:
            return create(**still, **sized)
        except TypeError as error:
            if "unexpected keyword" not in str(error):
                raise
    return create(**sized)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(": ")


def _split_normalisation(timm: Any, model: nn.Module) -> None:
    """timm's normalisation with an activation in it becomes two layers: only the first depends on the batch, and is
    what engines know how to take over all workers."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is timm.layers.BatchNormAct2d:
                setattr(module, name, _in_two(child))


def _in_two(norm: Any) -> nn.Sequential:
    bare = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    bare.weight, bare.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(bare, name, buffer)
    return nn.Sequential(bare, norm.drop, norm.act)


def _shapes(name: str, model: nn.Module, size: int) -> list[Shape]:
    """Of the last maps."""
    try:
        maps = model(torch.empty(2, 3, size, size))[-MOST_STAGES:]
    except Exception as error:  # whatever its layers say to such an image
        raise _refusal(name, f"can't take images of {size} pixels ({_first_line(error)}): set data.size") from error
    found = [_shape(name, each, _is_channels_last(model)) for each in maps]
    sides = [side for _, side in found]
    if len(found) < 2 or any(before % after for before, after in pairwise(sides)):
        raise _refusal(
            name,
            f"gives maps of {', '.join(map(str, sides))} pixels a side for images of {size}: needed are two or more, "
            "each side a whole multiple of the next",
        )
    return found


def _shape(name: str, found: Any, channels_last: bool) -> Shape:
    if not isinstance(found, Tensor) or found.dim() != 4:
        raise _refusal(name, "gives something other than maps of channels, height and width")
    height, width, channels = found.shape[1:] if channels_last else (*found.shape[2:], found.shape[1])
    if height != width:
        raise _refusal(name, f"gives maps of {height} x {width} pixels for square images")
    return channels, height


def _is_channels_last(model: nn.Module) -> bool:
    return getattr(model, "output_fmt", None) == "NHWC"


def _as_map(model: nn.Module, returned: Tensor) -> Tensor:
    return returned.permute(0, 3, 1, 2) if _is_channels_last(model) else returned


def _trunk(model: nn.Module, cuts: Sequence[Cut], shapes: Sequence[Shape], size: int) -> Trunk:
    """Return the model in parts; whole, if there are no cuts."""
    sides = [size, *(side for _, side in shapes)]
    strides = [before // after for before, after in pairwise(sides)]
    channels = [[count] for count, _ in shapes]
    if not cuts:
        return MapsBackbone(model, channels, strides, channels_last=_is_channels_last(model))
    before, stages = [Foreign()] * (len(cuts) == len(shapes)), parts_between(model, cuts)
    stem, *stages = *before, *stages
    views = [cut.view for cut in cuts[-len(shapes) :]]
    return CutBackbone(stem, stages, views, channels, strides)


def _require_usable(name: str, trunk: Trunk, size: int) -> None:
    """One pass in training, without memory."""
    layers = dict(trunk.named_modules())
    if odd := next((type(each).__name__ for each in layers.values() if _depends_on_the_batch(each)), None):
        raise _refusal(name, f"normalises by {odd}, whose results depend on the number of workers")
    seen: list[tuple[Tensor, int]] = []

    def look(_place: str, x: Tensor) -> Tensor:
        seen.append((x, x._version))
        return x

    with _Draws() as draws:
        deepest = trunk.train()(torch.empty(2, 3, size, size), look)
    drawing = [type(each).__name__ for each in layers.values() if isinstance(each, _DropoutNd) and each.p > 0]
    if drawn := [*drawing, *draws.found]:
        raise _refusal(name, f"draws random numbers in training ({drawn[0]}), which depend on the number of workers")
    if any(x._version != version for x, version in seen):
        raise _refusal(name, "changes a map in place behind the end of a stage, so nothing can be learnt from it")
    if unused := _unused(trunk, deepest):
        raise _refusal(name, f"has {len(unused)} parameters that its last map does not need, as {unused[0]}")


def _depends_on_the_batch(layer: nn.Module) -> bool:
    """In another way than `nn.BatchNorm2d` as engines know it."""
    remembers = any(name.startswith("running_") for name, _ in layer.named_buffers(recurse=False))
    if type(layer) is nn.BatchNorm2d:
        return not (remembers and layer.affine and layer.momentum is not None)
    return remembers or isinstance(layer, _NormBase)


class _Draws(TorchDispatchMode):
    """Notes what draws random numbers. Attention may drop, and says so by a layer of its own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and not any(
            part in func.name() for part in ("_dot_", "_sdp")
        ):
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


def _unused(trunk: nn.Module, deepest: Tensor) -> list[str]:
    parameters = {name: each for name, each in trunk.named_parameters() if each.requires_grad}
    gradients = torch.autograd.grad(deepest.sum(), list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]
