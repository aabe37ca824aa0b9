"""fmfsd as a library: loading trained networks, the method around any backbone, and the README's examples."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import fmfsd
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.errors import CheckError, ConfigError
from fmfsd.export.write import export
from fmfsd.run.run_dir import RunDir
from tests.helpers.runs import make_run, tiny_config, train_run

README = (Path(__file__).parents[3] / "fmfsd" / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README.partition("## As a library")[2].partition("\n## ")[0], re.DOTALL)


@pytest.fixture(scope="module")
def run(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    config = tiny_config(tiny_root, "train.max_steps=2", "optim.milestones=[]")
    run = make_run(tmp_path_factory.mktemp("library") / "run", config)
    train_run(SingleWorkerComms(), run.path)
    return run


@pytest.mark.parametrize("number", range(3))
def test_the_readmes_examples_run(
    number: int, run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(EXAMPLES) == 3
    shutil.copytree(run.path, tmp_path / "runs" / "NAME")
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], "README.md", "exec"), {})


def test_predictions_are_equal_for_uint8_float_and_single_images(run: RunDir) -> None:
    classifier = fmfsd.load(run.path)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    labels, probabilities = classifier.predict(images)
    assert probabilities.shape == (3, len(classifier.class_names))
    assert torch.equal(labels, classifier.predict(images.float() / 255).labels)
    torch.testing.assert_close(classifier.predict(images[1]).probabilities, probabilities[1:2])


@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 16, 16), torch.zeros(1, 32, 32), torch.full((3, 32, 32), 1.5), torch.ones(3, 32, 32).int()],
)
def test_images_of_a_wrong_shape_range_or_type_are_errors(images: torch.Tensor, run: RunDir) -> None:
    with pytest.raises(ValueError, match="expected"):
        fmfsd.load(run.path).predict(images)


def test_an_exported_file_needs_neither_run_nor_data_set(run: RunDir, tmp_path: Path) -> None:
    copy = RunDir(shutil.copytree(run.path, tmp_path / "run"))
    path = tmp_path / "served.safetensors"
    export(copy, "safetensors", "early-exit", "0.5", path)
    shutil.rmtree(copy.path)
    images = torch.rand(2, 3, 32, 32)
    assert fmfsd.load(path).predict(images).labels.shape == (2,)
    with pytest.raises(ValueError, match="a file has only the head that was exported"):
        fmfsd.load(path, head="deepest")


def test_a_run_can_be_loaded_without_its_data_set(tiny_root: Path, tmp_path: Path) -> None:
    """Without stored class names (a run of an earlier version), the error names the index that contains them."""
    data = Path(shutil.copytree(tiny_root / "cifar10", tmp_path / "data" / "cifar10")).parent
    config = tiny_config(data, "train.max_steps=1", "optim.milestones=[]")
    run = make_run(tmp_path / "run", config)
    train_run(SingleWorkerComms(), run.path)
    expected = fmfsd.load(run.path)
    shutil.rmtree(data)
    loaded = fmfsd.load(run.path, head="branch1")
    assert loaded.class_names == expected.class_names == tuple(f"class{number}" for number in range(10))
    run.classes.unlink()
    with pytest.raises(CheckError, match=f"{data}/cifar10/index.json: missing"):
        fmfsd.load(run.path)


def test_another_safetensors_file_is_an_error(run: RunDir) -> None:
    other = next(run.checkpoints.glob("step-*")) / "model.safetensors"
    with pytest.raises(CheckError, match="is not a file of `fmfsd export --format safetensors`"):
        fmfsd.load(other)


def test_all_layers_of_a_wrapped_backbone_get_gradients() -> None:
    backbone = torchvision.models.resnet18()
    backbone.fc = nn.Identity()
    names = ["layer1", "layer2", "layer3"]
    model = fmfsd.SelfDistillation(backbone, names, deepest="layer4", num_classes=4, size=64)
    assert model.head_names == ("branch1", "branch2", "fused", "deepest")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    before = model.loss(images, labels)
    before.backward()
    assert not [name for name, each in model.named_parameters() if each.grad is None]
    optimizer.step()
    for _ in range(4):
        optimizer.zero_grad()
        last = model.loss(images, labels)
        last.backward()
        optimizer.step()
    assert last < before
    assert not any(each._forward_hooks for each in backbone.modules())


def test_all_submodules_without_feature_maps_are_reported_at_once() -> None:
    backbone = torchvision.models.resnet18()

    def wrap(*branches: str, deepest: str = "layer4") -> None:
        fmfsd.SelfDistillation(backbone, branches, deepest=deepest, num_classes=4, size=64)

    with pytest.raises(ConfigError) as caught:
        wrap("layer9", "layer2", "head")
    assert [problem.where for problem in caught.value.problems] == ["layer9", "head"]
    assert "it has conv1, bn1" in str(caught.value)
    with pytest.raises(ConfigError, match="fc: its output is not a square map"):
        wrap("layer1", deepest="fc")
    with pytest.raises(ConfigError, match="name them shallow to deep"):
        wrap("layer3", "layer1")
    with pytest.raises(ConfigError, match="branches: empty"):
        wrap()


def test_the_former_name_of_a_config_warns_and_still_works() -> None:
    with pytest.warns(DeprecationWarning, match=r"fmfsd\.TrainConfig is now fmfsd\.RunConfig"):
        assert fmfsd.TrainConfig is fmfsd.RunConfig
