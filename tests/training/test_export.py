"""`fmfsd export`: one file that answers as the run does, or none and the reason."""

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
from fmfsd.distributed.collectives import SoloComms
from fmfsd.errors import CheckError
from fmfsd.export.load import trained_network
from fmfsd.export.write import SUFFIXES, Answer, agreement, export
from fmfsd.model.early_exit import EarlyExit
from fmfsd.run.run_dir import RunDir
from tests.helpers.runs import make_run, tiny_config, train_run

SHORT = ("train.max_steps=3", "train.ema=0.5", "optim.milestones=[]")


@pytest.fixture(scope="module")
def run(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("exported") / "run", tiny_config(tiny_root, *SHORT))
    train_run(SoloComms(), run.path)
    return run


@pytest.fixture(autouse=True)
def no_watcher_of_progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter to ONNX shows a bar by tqdm, whose watching thread would outlive the test."""
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def middle_threshold(run: RunDir) -> str:
    """Some images leave and some do not, and none is near it."""
    classifier = fmfsd.load(run.path, head="branch1")
    sure = classifier.predict(images(64)).probabilities.amax(dim=1).double().sort().values
    widest = sure[8:-8].diff().argmax().item() + 8
    return str(sure[widest : widest + 2].mean().item())


@pytest.mark.parametrize("head", ["deepest", "ensemble", "branch1"])
@pytest.mark.parametrize("form", SUFFIXES)
def test_every_form_answers_as_the_run_for_any_number_of_images(
    form: str, head: str, run: RunDir, tmp_path: Path
) -> None:
    path = tmp_path / f"served{SUFFIXES[form]}"
    found = export(run, form, head, out=path)
    assert found.images == 64
    assert found.agreement.difference <= found.agreement.tolerance
    assert (found.agreement.ties, found.agreement.strayed) == (0, 0)
    with torch.no_grad():
        expected = fmfsd.load(run.path, head=head)(images())
    torch.testing.assert_close(answered(form, path, images())[0], expected, atol=1e-5, rtol=1e-5)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_file_of_a_branch_holds_no_layer_behind_its_tap(run: RunDir, tmp_path: Path) -> None:
    layers = {}
    for head in ("branch1", "deepest"):
        export(run, "safetensors", head, out=tmp_path / head)
        with safe_open(tmp_path / head, framework="pt") as file:
            layers[head] = set(file.keys())
    assert any("deepest_head" in name for name in layers["deepest"])
    assert not any("deepest_head" in name or "fused_head" in name for name in layers["branch1"])
    assert any("heads.0" in name for name in layers["branch1"])


def answered(form: str, path: Path, batch: Tensor) -> list[Tensor]:
    with torch.no_grad():
        if form == "onnx":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            return [torch.from_numpy(each) for each in session.run(None, {"images": batch.numpy()})]
        module = fmfsd.load(path) if form == "safetensors" else torch.export.load(path).module()
        found = module(batch)
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("form", SUFFIXES)
def test_early_exits_choose_the_first_sure_head_in_every_form(form: str, run: RunDir, tmp_path: Path) -> None:
    threshold, path = middle_threshold(run), tmp_path / f"served{SUFFIXES[form]}"
    export(run, form, "early-exit", threshold, path)
    _, network, _ = trained_network(run)
    card = fmfsd.load(run.path)
    with torch.no_grad():
        expected = EarlyExit(network, [float(threshold)])((images(64) - card.mean) / card.std)
    logits, heads = answered(form, path, images(64))
    assert set(heads.tolist()) == {0, 1}
    assert torch.equal(heads, expected.heads)
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)


def metadata(form: str, path: Path) -> dict[str, str]:
    if form == "onnx":
        return {each.key: each.value for each in onnx.load(path).metadata_props}
    if form == "torch":
        extra = {"fmfsd.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["fmfsd.json"])
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize("form", SUFFIXES)
def test_the_metadata_says_what_a_user_needs_and_no_path_of_this_machine(
    form: str, run: RunDir, tiny_root: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"served{SUFFIXES[form]}"
    export(run, form, out=path)
    found = metadata(form, path)
    said = {name: json.loads(found[name]) for name in ("size", "mean", "std", "head", "thresholds", "checkpoint")}
    assert said == {
        "size": 32,
        "mean": [0.4914, 0.4822, 0.4465],
        "std": [0.2023, 0.1994, 0.2010],
        "head": "deepest",
        "thresholds": [],
        "checkpoint": "step-00000003",
    }
    assert json.loads(found["class_names"]) == list(fmfsd.load(run.path).class_names)
    assert str(tiny_root) not in json.dumps(found)


def test_a_file_that_answers_otherwise_is_not_left(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmfsd.export.write.TOLERANCE", -1.0)
    with pytest.raises(CheckError, match="does not answer as the run does on test images"):
        export(run, "safetensors", out=tmp_path / "served.safetensors")
    assert not list(tmp_path.iterdir())


def exported(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["export", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_says_what_it_checked_and_never_overwrites(run: RunDir, tmp_path: Path) -> None:
    arguments = (str(run.path), "--format", "safetensors", "--out", str(tmp_path / "new" / "served.safetensors"))
    code, shown, _ = exported(*arguments)
    assert code == 0
    assert "deepest of step-00000003; 64 test images: logits differ by" in shown
    code, _, errors = exported(*arguments)
    assert code == 3
    assert "exists, and nothing is overwritten: choose another --out" in errors


WRONG = [
    (("--exit-thresholds", "0.5"), 2, "--exit-thresholds 0.5: --head deepest has none"),
    (("--head", "branch9"), 2, "choose branch1, fused, deepest, ensemble or early-exit"),
    (("--head", "early-exit", "--exit-thresholds", "2"), 2, "expected probabilities above 0"),
    (("--head", "early-exit", "--exit-thresholds", "0.5,0.6"), 2, "2 for 1 early heads (branch1)"),
    (("--out", "/dev/null/served"), 3, "can't be written"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG)
def test_what_does_not_fit_is_refused(arguments: tuple[str, ...], code: int, message: str, run: RunDir) -> None:
    found, shown, errors = exported(str(run.path), "--format", "safetensors", *arguments)
    assert (found, shown) == (code, "")
    assert message in errors


def test_a_missing_package_names_the_extra(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, errors = exported(str(run.path), "--format", "onnx", "--out", str(tmp_path / "served.onnx"))
    assert code == 3
    assert "needs onnxscript: pip install 'fmfsd[export]'" in errors


def test_without_the_set_of_the_run_it_says_what_makes_one(tmp_path: Path, run: RunDir, tiny_root: Path) -> None:
    moved = RunDir(tmp_path / "run")
    moved.path.mkdir()
    moved.checkpoints.symlink_to(run.checkpoints)
    moved.config.write_text(run.config.read_text().replace(str(tiny_root), str(tmp_path / "gone")))
    code, _, errors = exported(str(moved.path), "--format", "safetensors")
    assert code == 3
    assert "run `fmfsd data prepare`" in errors


def answers(*logits: tuple[float, float]) -> Answer:
    return torch.tensor(logits), torch.zeros(len(logits), dtype=torch.int64)


def test_a_tie_may_have_the_other_label_and_nothing_else_may() -> None:
    expected = answers((1.0, 1.0 + 1e-6), (3.0, 1.0))
    found = agreement(answers((1.0 + 1e-6, 1.0), (3.0, 1.0)), expected, Path("file"))
    assert (found.ties, str(found).count("1 by another label to rounding")) == (1, 1)
    with pytest.raises(CheckError, match="does not answer as the run does"):
        agreement(answers((1.0, 1.0 + 1e-6), (1.0, 3.0)), expected, Path("file"))


@pytest.mark.parametrize(("strayed", "fails"), [(2, False), (3, True)])
def test_few_images_may_leave_elsewhere_whose_sureness_is_a_threshold(strayed: int, fails: bool) -> None:
    logits, heads = torch.zeros(200, 2), torch.zeros(200, dtype=torch.int64)
    elsewhere = (torch.arange(200) < strayed).long()
    with pytest.raises(CheckError, match=f"{strayed} by another exit") if fails else nullcontext():
        agreement((logits + 9 * elsewhere.unsqueeze(1), elsewhere), (logits, heads), Path("file"))
