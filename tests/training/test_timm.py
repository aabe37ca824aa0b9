"""timm's models: split into stages or used as a whole, with every layer used; other models are errors."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import fmfsd
from fmfsd.config import RunConfig, load_config
from fmfsd.cost.measure.estimate import estimate_cost
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.errors import ConfigError
from fmfsd.evaluation.evaluate_run import EvaluateOptions, evaluate_run
from fmfsd.model.backbones.backbone import Backbone
from fmfsd.model.backbones.timm import MapsBackbone, timm_backbone
from fmfsd.model.build import build_network
from fmfsd.model.early_exit import EarlyExit, early_head_names
from fmfsd.model.prune import prune
from tests.helpers.processes import run_command
from tests.helpers.runs import make_loop, make_run, tiny_config, train_run

CHAINS = ("test_resnet", "test_convnext", "test_byobnet", "test_nfnet")
MAPS_AT_THE_END = ("test_efficientnet", "efficientnet_b0", "mobilenetv3_small_050", "mobilenetv4_conv_small")
CHANNELS_LAST = ("test_mambaout", "swin_tiny_patch4_window7_224")
TOKENS = ("vit_tiny_patch16_224", "vit_medium_patch16_gap_256")
"""One model with a class token, and one without."""
SPLIT_MODELS = (*CHAINS, *MAPS_AT_THE_END, *CHANNELS_LAST, *TOKENS)
UNSPLIT_MODELS = ("test_vit",)
"""Models that return their maps only at their end: this one has a separate code path for each image size."""


def config(backbone: str, method: str, *changes: str) -> RunConfig:
    return load_config("cifar100-resnet18", [f"method={method}", f"model.backbone=timm/{backbone}", *changes])


def build_error(backbone: str, method: str, *changes: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        build_network(config(backbone, method, *changes))
    return caught.value


def timm_maps(name: str, images: Tensor) -> list[Tensor]:
    """Return the maps of timm's own model with the weights of seed 0."""
    import timm

    torch.manual_seed(0)
    size_options = {"img_size": 32} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    determinism_options = {"drop_path_rate": 0.0} if name.startswith("swin") else {}
    model = timm.create_model(name, features_only=True, **size_options, **determinism_options).train()
    maps: list[Tensor] = model(images)
    return [each.permute(0, 3, 1, 2) for each in maps] if name in CHANNELS_LAST else maps


@pytest.mark.parametrize("name", [*SPLIT_MODELS, *UNSPLIT_MODELS, "densenet121"])
def test_a_backbones_maps_equal_timms_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    backbone = timm_backbone(name, 32, pretrained=False).train()
    assert isinstance(backbone, MapsBackbone if name in UNSPLIT_MODELS else Backbone)
    maps: list[Tensor] = []

    def record(_tap: str, x: Tensor) -> Tensor:
        maps.append(x)
        return x

    images = torch.randn(3, 3, 32, 32)
    last = backbone(images, record)
    expected = timm_maps(name, images)[-4:]
    assert torch.equal(last, expected[-1])
    assert all(torch.equal(one, other) for one, other in zip(maps, expected, strict=True))
    assert [tap.channels for tap in backbone.tap_points] == [each.shape[1] for each in expected]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, method) for name in SPLIT_MODELS for method in ("plain", "byot", "fmfsd", "fmfsd_side")),
        *((name, method) for name in UNSPLIT_MODELS for method in ("plain", "byot", "fmfsd_side")),
    ],
)
def test_every_parameter_gets_a_gradient(name: str, method: str) -> None:
    network = build_network(config(name, method)).train()
    outputs = network(torch.randn(2, 3, 32, 32))
    loss = sum((F.cross_entropy(logits, torch.tensor([0, 1])) for logits in outputs.logits), torch.zeros(()))
    loss = loss + sum((feature - outputs.deepest_feature.detach()).norm() for feature in outputs.features)
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("name", "method"), [("test_resnet", "fmfsd"), ("test_vit", "fmfsd_side")])
def test_a_probe_reports_the_real_parameters_and_taps(name: str, method: str) -> None:
    run_config = config(name, method, "train.batch=64")
    result, network = estimate_cost(run_config, workers=2), build_network(run_config)
    assert result.parameters.total == sum(parameter.numel() for parameter in network.parameters())
    assert [head.tap for head in result.heads] == list(network.head_taps)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("test_resnet", "fmfsd"),
        ("test_vit", "fmfsd_side"),
        *((name, "fmfsd") for name in ("test_efficientnet", "test_mambaout", *TOKENS)),
    ],
)
@pytest.mark.parametrize("head", ["branch1", "deepest"])
def test_a_pruned_head_has_the_logits_of_the_network(name: str, method: str, head: str) -> None:
    network = build_network(config(name, method)).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(images).logits[network.head_names.index(head)]
        assert torch.equal(prune(network, head)(images), expected)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_mambaout", "vit_medium_patch16_gap_256"])
def test_early_exits_work_if_parts_exchange_only_maps(name: str) -> None:
    network = build_network(config(name, "fmfsd")).eval()
    images = torch.randn(4, 3, 32, 32)
    first, *_, last = network(images).logits
    confidence = first.double().softmax(dim=1).amax(dim=1)
    unreachable = [2.0] * (len(early_head_names(network)) - 1)
    result = EarlyExit(network, [confidence.quantile(0.5).item(), *unreachable])(images)
    exits = (confidence >= confidence.quantile(0.5)).unsqueeze(1)
    assert sorted(result.heads.tolist()) == [0, 0, len(unreachable) + 1, len(unreachable) + 1]
    torch.testing.assert_close(result.logits, torch.where(exits, first, last), rtol=1e-4, atol=1e-5)


def test_a_model_with_a_class_token_has_no_early_exits() -> None:
    network = build_network(config("vit_tiny_patch16_224", "fmfsd")).eval()
    images = torch.randn(2, 3, 32, 32)
    assert early_head_names(network) == ()
    assert torch.equal(EarlyExit(network, ())(images).logits, network(images).logits[-1])


def test_initial_weights_are_timms_and_depend_only_on_the_seed() -> None:
    torch.manual_seed(1)
    one, same_seed = (build_network(config("test_resnet", "plain", "seed=0")).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], same_seed[name]) for name in one)
    other = build_network(config("test_resnet", "plain", "seed=4")).state_dict()
    assert not all(torch.equal(one[name], other[name]) for name in one)
    backbone, images = build_network(config("test_resnet", "plain", "seed=0")).backbone, torch.randn(2, 3, 32, 32)
    last = backbone.train()(images, lambda _tap, x: x)
    assert torch.equal(last, timm_maps("test_resnet", images)[-1])


def test_all_batch_norm_layers_are_plain_batch_norm_2d() -> None:
    kinds = {type(layer) for layer in timm_backbone("test_efficientnet", 32, pretrained=False).modules()}
    assert nn.BatchNorm2d in kinds
    assert not [kind for kind in kinds if issubclass(kind, nn.BatchNorm2d) and kind is not nn.BatchNorm2d]


@pytest.mark.parametrize("method", ["fmfsd", "fmfsd --set model.fusion=both"])
def test_fusion_in_the_trunk_needs_a_model_that_can_be_split(method: str) -> None:
    name, *fusion = method.split(" --set ")
    assert "timm/test_vit returns its maps only at the end of its forward pass: set method fmfsd_side" in str(
        build_error("test_vit", name, *fusion)
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet10", "is not a model of timm 1.0.31; similar names: timm/resnet10t, timm/resnet101"),
        ("inception_v3", "does not accept images of 32 pixels (RuntimeError: Calculated padded input size"),
        ("hrnet_w18_small", "has 66 parameters that its last map does not use, such as model."),
        ("levit_128s", "uses BatchNorm1d for normalisation, whose results depend on the number of workers"),
        ("coatnet_rmlp_nano_rw_224", "draws random numbers in training (Dropout)"),
        ("halonet26t", "does not accept images of 32 pixels (AssertionError): set data.size"),
    ],
)
def test_models_whose_training_is_not_invariant_or_possible_are_errors(name: str, reason: str) -> None:
    assert f"model.backbone: timm/{name} {reason}" in str(build_error(name, "fmfsd_side"))


def test_map_sizes_that_are_not_multiples_of_each_other_are_an_error() -> None:
    with pytest.raises(ConfigError, match="has maps with sides of 14, 7, 4 pixels for images of 224, but needs two"):
        timm_backbone("efficientvit_m0", 224, pretrained=False)


def test_groups_that_do_not_divide_the_channels_are_an_error() -> None:
    error = build_error("test_resnet", "fmfsd", "model.sem_groups=64")
    assert str(error) == "model.sem_groups: 64 groups do not divide a map's 32 channels; try auto"


def test_the_error_for_unknown_taps_lists_the_taps() -> None:
    error = build_error("test_resnet", "fmfsd", "model.branches=[stage9]")
    assert "timm/test_resnet has no tap 'stage9'; it has stage1, stage2, stage3" in str(error)


def test_without_timm_its_models_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "needs a package that is missing (timm): pip install 'fmfsd[timm]'" in str(
        build_error("test_resnet", "plain")
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the hub client's cache folder; the client is offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def put_weights(cache: Path) -> dict[str, Tensor]:
    """Write weights to the cache as the hub's client does."""
    import timm

    weights: dict[str, Tensor] = timm.create_model("test_resnet").state_dict()
    folder = cache / f"models--{timm.get_pretrained_cfg('test_resnet').hf_hub_id.replace('/', '--')}"
    for part in ("refs", "snapshots/0123"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123")
    save_file(weights, folder / "snapshots" / "0123" / "model.safetensors")
    return weights


def test_pretrained_weights_are_loaded_from_the_hubs_cache(cache: Path) -> None:
    weights, run_config = put_weights(cache), config("test_resnet", "plain", "model.pretrained=true")
    state = build_network(run_config).backbone.state_dict()
    convolutions = [name for name, tensor in weights.items() if tensor.dim() == 4]
    loaded = [tensor for tensor in state.values() if tensor.dim() == 4]
    assert all(torch.equal(weights[name], tensor) for name, tensor in zip(convolutions, loaded, strict=True))
    assert (
        estimate_cost(run_config, workers=2).parameters.total
        == estimate_cost(config("test_resnet", "plain"), workers=2).parameters.total
    )


def test_a_probe_reports_unavailable_weights_before_a_start(cache: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        estimate_cost(config("test_resnet", "plain", "model.pretrained=true"), workers=2)
    assert "timm/test_resnet can't load its weights (LocalEntryNotFoundError" in str(caught.value)
    assert "timm downloads them to HF_HOME: run once on a machine with network access" in str(caught.value)


def test_pretrained_weights_are_not_loaded_if_a_checkpoint_replaces_them(
    cache: Path, tiny_root: Path, tmp_path: Path
) -> None:
    """Neither to resume, evaluate or load a run, nor to start from its weights."""
    put_weights(cache)
    (folder,) = cache.glob("models--*")
    pretrained = ("model.backbone=timm/test_resnet", "model.pretrained=true", "method=plain")
    run_config = tiny_config(tiny_root, *pretrained, "train.max_steps=2", "optim.milestones=[]")
    run = make_run(tmp_path / "run", run_config)
    train_run(SingleWorkerComms(), run.path, 1)
    shutil.rmtree(folder)
    assert train_run(SingleWorkerComms(), run.path) == "finished"
    assert evaluate_run(run, EvaluateOptions(early_exits=False), torch.device("cpu")).step == 2
    assert fmfsd.load(run.path).predict(torch.zeros(3, 32, 32)).labels.shape == (1,)
    derived = make_run(tmp_path / "again", tiny_config(tiny_root, *pretrained, f"train.init_from={run.path}"))
    assert train_run(SingleWorkerComms(), derived.path, 1) == "stopped"
    with pytest.raises(ConfigError, match="can't load its weights"):
        make_loop(make_run(tmp_path / "new", run_config), SingleWorkerComms())


def test_pretrained_is_an_error_for_models_without_weights() -> None:
    error = build_error("test_mambaout", "fmfsd_side", "model.pretrained=true")
    assert str(error).endswith("timm/test_mambaout has no pretrained weights: set model.pretrained false")


def test_the_check_before_a_launch_reports_what_a_model_does_not_support(tmp_path: Path) -> None:
    path = tmp_path / "vit.yaml"
    path.write_text("model: {backbone: timm/test_vit}\n")
    completed = run_command("fmfsd-launch", str(path), "--check", cwd=tmp_path, env={"XDG_CACHE_HOME": str(tmp_path)})
    assert completed.returncode == 2
    assert "timm/test_vit returns its maps only at the end of its forward pass: set method fmfsd_side" in " ".join(
        completed.stderr.split()
    )
