"""`fmfsd export`: a file with the same outputs as the run, or no file and an error."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from typer.testing import CliRunner

import fmfsd
from fmfsd.cli import app
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.errors import CheckError
from fmfsd.export.load import load_trained_network
from fmfsd.export.write import SUFFIXES, ModelOutput, compare_outputs, export
from fmfsd.model.early_exit import EarlyExit
from fmfsd.run.run_dir import RunDir
from tests.helpers.runs import make_run, tiny_config, train_run

SHORT = ("train.max_steps=3", "train.ema=0.5", "optim.milestones=[]")


@pytest.fixture(scope="module")
def run(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("exported") / "run", tiny_config(tiny_root, *SHORT))
    train_run(SingleWorkerComms(), run.path)
    return run


@pytest.fixture(autouse=True)
def disable_tqdm_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable tqdm's monitor thread, which the ONNX exporter starts and which would outlive the test."""
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def middle_threshold(run: RunDir) -> str:
    """Return a threshold that some images reach and some do not, and that is far from every confidence."""
    classifier = fmfsd.load(run.path, head="branch1")
    confidences = classifier.predict(images(64)).probabilities.amax(dim=1).double().sort().values
    widest = confidences[8:-8].diff().argmax().item() + 8
    return str(confidences[widest : widest + 2].mean().item())


@pytest.mark.parametrize("head", ["deepest", "ensemble", "branch1"])
@pytest.mark.parametrize("format", SUFFIXES)
def test_every_format_has_the_outputs_of_the_run_for_any_number_of_images(
    format: str, head: str, run: RunDir, tmp_path: Path
) -> None:
    path = tmp_path / f"served{SUFFIXES[format]}"
    result = export(run, format, head, out=path)
    assert result.images == 64
    assert result.agreement.difference <= result.agreement.tolerance
    assert (result.agreement.ties, result.agreement.changed_exits) == (0, 0)
    with torch.no_grad():
        expected = fmfsd.load(run.path, head=head)(images())
    torch.testing.assert_close(run_exported(format, path, images())[0], expected, atol=1e-5, rtol=1e-5)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_file_of_a_branch_has_no_layer_after_its_tap(run: RunDir, tmp_path: Path) -> None:
    layers = {}
    for head in ("branch1", "deepest"):
        export(run, "safetensors", head, out=tmp_path / head)
        with safe_open(tmp_path / head, framework="pt") as file:
            layers[head] = set(file.keys())
    assert any("deepest_head" in name for name in layers["deepest"])
    assert not any("deepest_head" in name or "fused_head" in name for name in layers["branch1"])
    assert any("heads.0" in name for name in layers["branch1"])


def run_exported(format: str, path: Path, batch: Tensor) -> list[Tensor]:
    with torch.no_grad():
        if format == "onnx":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            return [torch.from_numpy(each) for each in session.run(None, {"images": batch.numpy()})]
        module = fmfsd.load(path) if format == "safetensors" else torch.export.load(path).module()
        outputs = module(batch)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


@pytest.mark.parametrize("format", SUFFIXES)
def test_early_exits_use_the_first_head_above_its_threshold_in_every_format(
    format: str, run: RunDir, tmp_path: Path
) -> None:
    threshold, path = middle_threshold(run), tmp_path / f"served{SUFFIXES[format]}"
    export(run, format, "early-exit", threshold, path)
    _, network, _ = load_trained_network(run)
    classifier = fmfsd.load(run.path)
    with torch.no_grad():
        expected = EarlyExit(network, [float(threshold)])((images(64) - classifier.mean) / classifier.std)
    logits, heads = run_exported(format, path, images(64))
    assert set(heads.tolist()) == {0, 1}
    assert torch.equal(heads, expected.heads)
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)


def metadata(format: str, path: Path) -> dict[str, str]:
    if format == "onnx":
        return {each.key: each.value for each in onnx.load(path).metadata_props}
    if format == "torch":
        extra = {"fmfsd.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["fmfsd.json"])
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize("format", SUFFIXES)
def test_the_metadata_are_complete_and_contain_no_local_path(
    format: str, run: RunDir, tiny_root: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"served{SUFFIXES[format]}"
    export(run, format, out=path)
    content = metadata(format, path)
    values = {name: json.loads(content[name]) for name in ("size", "mean", "std", "head", "thresholds", "checkpoint")}
    assert values == {
        "size": 32,
        "mean": [0.4914, 0.4822, 0.4465],
        "std": [0.2023, 0.1994, 0.2010],
        "head": "deepest",
        "thresholds": [],
        "checkpoint": "step-00000003",
    }
    assert json.loads(content["class_names"]) == list(fmfsd.load(run.path).class_names)
    assert str(tiny_root) not in json.dumps(content)


def test_a_file_with_other_outputs_is_deleted(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmfsd.export.write.TOLERANCE", -1.0)
    with pytest.raises(CheckError, match="its outputs on test images differ from the run's"):
        export(run, "safetensors", out=tmp_path / "served.safetensors")
    assert not list(tmp_path.iterdir())


def run_export(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["export", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_reports_its_checks_and_never_overwrites(run: RunDir, tmp_path: Path) -> None:
    arguments = (str(run.path), "--format", "safetensors", "--out", str(tmp_path / "new" / "served.safetensors"))
    code, output, _ = run_export(*arguments)
    assert code == 0
    assert "deepest of step-00000003; 64 test images: logits differ by" in output
    code, _, errors = run_export(*arguments)
    assert code == 3
    assert "exists and is not overwritten: choose another --out" in errors


WRONG_ARGUMENTS = [
    (("--exit-thresholds", "0.5"), 2, "--exit-thresholds 0.5: --head deepest has no thresholds"),
    (("--head", "branch9"), 2, "choose branch1, fused, deepest, ensemble or early-exit"),
    (("--head", "early-exit", "--exit-thresholds", "2"), 2, "expected probabilities above 0"),
    (("--head", "early-exit", "--exit-thresholds", "0.5,0.6"), 2, "2 for 1 early heads (branch1)"),
    (("--out", "/dev/null/served"), 3, "can't be written"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG_ARGUMENTS)
def test_wrong_arguments_are_errors(arguments: tuple[str, ...], code: int, message: str, run: RunDir) -> None:
    exit_code, output, errors = run_export(str(run.path), "--format", "safetensors", *arguments)
    assert (exit_code, output) == (code, "")
    assert message in errors


def test_a_missing_package_names_the_extra(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, errors = run_export(str(run.path), "--format", "onnx", "--out", str(tmp_path / "served.onnx"))
    assert code == 3
    assert "needs onnxscript: pip install 'fmfsd[export]'" in errors


def test_without_the_data_set_of_the_run_the_error_names_the_remedy(
    tmp_path: Path, run: RunDir, tiny_root: Path
) -> None:
    copy = RunDir(tmp_path / "run")
    copy.path.mkdir()
    copy.checkpoints.symlink_to(run.checkpoints)
    copy.config.write_text(run.config.read_text().replace(str(tiny_root), str(tmp_path / "missing")))
    code, _, errors = run_export(str(copy.path), "--format", "safetensors")
    assert code == 3
    assert "run `fmfsd data prepare`" in errors


def make_outputs(*logits: tuple[float, float]) -> ModelOutput:
    return torch.tensor(logits), torch.zeros(len(logits), dtype=torch.int64)


def test_only_a_tie_may_have_another_label() -> None:
    expected = make_outputs((1.0, 1.0 + 1e-6), (3.0, 1.0))
    result = compare_outputs(make_outputs((1.0 + 1e-6, 1.0), (3.0, 1.0)), expected, Path("file"))
    assert (result.ties, str(result).count("1 with another label by rounding")) == (1, 1)
    with pytest.raises(CheckError, match="its outputs on test images differ from the run's"):
        compare_outputs(make_outputs((1.0, 1.0 + 1e-6), (1.0, 3.0)), expected, Path("file"))


@pytest.mark.parametrize(("strayed", "fails"), [(2, False), (3, True)])
def test_only_few_images_at_the_threshold_may_use_another_exit(strayed: int, fails: bool) -> None:
    logits, heads = torch.zeros(200, 2), torch.zeros(200, dtype=torch.int64)
    other_exit = (torch.arange(200) < strayed).long()
    with pytest.raises(CheckError, match=f"{strayed} with another exit") if fails else nullcontext():
        compare_outputs((logits + 9 * other_exit.unsqueeze(1), other_exit), (logits, heads), Path("file"))
