"""Training in one process: the loop, its metrics, stopping, resuming, losses that are not finite."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fmfsd.config import load_config
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.distributed.world import World
from fmfsd.errors import ConfigError, NonFiniteLossError
from fmfsd.run.heartbeat import HeartbeatFile
from fmfsd.run.run_dir import RunDir
from fmfsd.training.attempt_fence import AttemptFence
from fmfsd.training.trainer import choose_device, train
from tests.helpers.runs import make_loop, make_run, newest_weights, read_records, tiny_config, train_run

CPU = torch.device("cpu")
FOUR_STEPS = (
    *("data.shards=16", "train.batch=16", "train.max_steps=4"),
    *("train.evaluate_every=2 steps", "checkpoint.every_steps=2"),
)
"""Four steps with an eighth of the batch size of `tiny_config`."""


def train_alone(run: RunDir, *, attempt: int) -> str:
    """Train as the only worker, with a heartbeat."""
    with HeartbeatFile(run.rank_progress(0), rank=0, attempt=attempt) as progress:
        return train(run, World(), CPU, progress, AttemptFence(run, attempt), timeout_s=60)


def test_a_run_writes_metrics_checkpoints_progress_and_an_outcome(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root))
    assert train_alone(run, attempt=3) == "finished"
    lines = read_records(run)
    assert [(line["step"], line["epoch"], line["split"]) for line in lines] == [
        (1, 1, "train"),
        (2, 1, "train"),
        (2, 1, "test"),
        (3, 2, "train"),
        (4, 2, "train"),
        (4, 2, "test"),
    ]
    parts = ("loss_label", "loss_soft_target", "loss_feature")
    for line in (line for line in lines if line["split"] == "train"):
        assert line["loss"] == pytest.approx(sum(line[part] for part in parts))
    heads = {"branch1_top1", "fused_top1", "deepest_top1", "ensemble_top1", "loss"}
    assert heads <= lines[-1].keys()
    assert [line["lr"] for line in lines if "lr" in line] == pytest.approx([0.05, 0.05, 0.005, 0.005])
    outcome = json.loads(run.outcome.read_text())
    assert (outcome["state"], outcome["attempt"], outcome["step"], outcome["resumable"]) == ("finished", 3, 4, False)
    assert outcome["metrics"]["test"]["deepest_top1"] == lines[-1]["deepest_top1"]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-00000002", "step-00000004"]
    assert json.loads(run.rank_progress(0).read_text())["state"] == "finished"


def test_the_learning_rate_is_scaled_by_the_batch_size_and_warmed_up(tiny_root: Path, tmp_path: Path) -> None:
    changes = (
        *FOUR_STEPS,
        "optim.base_batch=8",
        "optim.warmup=2 steps",
        "optim.milestones=[3 steps]",
        "checkpoint.keep=9",
    )
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *changes))
    train_run(SingleWorkerComms(), run.path)
    assert [line["lr"] for line in read_records(run) if "lr" in line] == pytest.approx([0.05, 0.1, 0.1, 0.01])


def test_a_run_that_stops_in_its_warm_up_resumes_bit_for_bit(tiny_root: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_root, *FOUR_STEPS, "optim.warmup=3 steps", "optim.milestones=[3 steps]")
    whole, parted = (make_run(tmp_path / name, config) for name in ("whole", "parted"))
    train_run(SingleWorkerComms(), whole.path)
    assert train_run(SingleWorkerComms(), parted.path, 2) == "stopped"
    train_run(SingleWorkerComms(), parted.path)
    assert read_records(parted) == read_records(whole)
    assert newest_weights(parted) == newest_weights(whole)


@pytest.fixture(scope="module", params=[("fp32", "false"), ("bf16", "true")], ids=["fp32", "bf16, channels last"])
def whole(request: pytest.FixtureRequest, tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Return an uninterrupted run of four steps."""
    precision, channels_last = request.param
    formats = (f"train.precision={precision}", f"train.channels_last={channels_last}")
    config = tiny_config(tiny_root, *FOUR_STEPS, "train.log_every=3 steps", "checkpoint.keep=1", *formats)
    run = make_run(tmp_path_factory.mktemp("whole") / "run", config)
    assert train_run(SingleWorkerComms(), run.path) == "finished"
    return run


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    stop_after: int, whole: RunDir, tmp_path: Path
) -> None:
    parted = make_run(tmp_path / "run", load_config(str(whole.config)))
    assert train_run(SingleWorkerComms(), parted.path, stop_after) == "stopped"
    assert train_run(SingleWorkerComms(), parted.path) == "finished"
    assert read_records(parted) == read_records(whole)
    assert newest_weights(parted) == newest_weights(whole)


def test_a_run_stopped_in_an_evaluation_repeats_it_on_resume(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *FOUR_STEPS))
    loop = make_loop(run, SingleWorkerComms(), stop_after=2)
    loop.resume()
    loop._handle_results = lambda **_: None  # type: ignore[method-assign]  # so that the stop is first noticed in the evaluation
    assert loop.run() == "stopped"
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000002-unevaluated"]
    assert [line["split"] for line in read_records(run)] == ["train", "train"]
    assert train_run(SingleWorkerComms(), run.path) == "finished"
    assert [line["split"] for line in read_records(run)] == ["train", "train", "test", "train", "train", "test"]


def test_a_killed_run_has_each_record_exactly_once(tiny_root: Path, tmp_path: Path) -> None:
    """Records after the checkpoint from which it resumes are written again."""
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *FOUR_STEPS, "checkpoint.keep=5"))
    train_run(SingleWorkerComms(), run.path)
    before, weights = read_records(run), newest_weights(run)
    shutil.rmtree(run.checkpoints / "step-00000004")
    assert train_run(SingleWorkerComms(), run.path) == "finished"
    assert read_records(run) == before
    assert newest_weights(run) == weights


def test_a_finished_run_is_not_trained_again(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *FOUR_STEPS))
    train_run(SingleWorkerComms(), run.path)
    before = read_records(run)
    assert train_run(SingleWorkerComms(), run.path) == "finished"
    assert read_records(run) == before


def test_with_a_validation_split_the_test_set_is_evaluated_only_at_the_end(tiny_root: Path, tmp_path: Path) -> None:
    config = tiny_config(
        tiny_root, "data.shards=16", "data.valid=30", "train.batch=64", "train.epochs=2", "optim.milestones=[1]"
    )
    run = make_run(tmp_path / "run", config)
    train_run(SingleWorkerComms(), run.path)
    splits = [(line["epoch"], line["split"]) for line in read_records(run) if line["split"] != "train"]
    assert splits == [(1, "valid"), (2, "valid"), (2, "test")]


def test_a_loss_that_is_not_finite_ends_the_run_and_the_error_names_the_step(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *FOUR_STEPS, "optim.lr=1e30"))
    with pytest.raises(NonFiniteLossError, match=r"not finite in step \d, epoch \d .*Lower optim.lr \(1e\+30\)"):
        train_run(SingleWorkerComms(), run.path)
    assert list(run.checkpoints.glob("step-*")) == []


@pytest.mark.fault("F18")
@pytest.mark.parametrize("rate", ["1e6", "1e30"])
def test_a_network_that_a_step_made_non_finite_ends_the_run_at_its_evaluation(
    rate: str, tiny_root: Path, tmp_path: Path
) -> None:
    """The training loss is that before the step, so finite. No metrics are written, and no attempt follows."""
    changes = ("train.batch=256", f"optim.lr={rate}", "optim.momentum=0", "optim.milestones=[]")
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *changes))
    with pytest.raises(
        NonFiniteLossError, match=r"is not finite on the test split after step \d.*Lower optim.lr"
    ) as caught:
        train_run(SingleWorkerComms(), run.path)
    assert not caught.value.worth_another_attempt
    assert {line["split"] for line in read_records(run)} == {"train"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [((), ""), (("data.shards=6", "train.batch=60"), "16 of 256 training samples are left out of each epoch")],
)
def test_samples_that_are_left_out_are_logged(
    changes: tuple[str, ...], expected: str, tiny_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    make_loop(make_run(tmp_path / "run", tiny_config(tiny_root, *changes)), SingleWorkerComms())
    assert expected in caplog.text
    assert bool(expected) == ("left out" in caplog.text)


@pytest.mark.parametrize("decay_changes", [(), ("optim.decay_norms=false",)], ids=["all", "without norms and biases"])
def test_weight_decay_pulls_parameters_towards_0(
    decay_changes: tuple[str, ...], tiny_root: Path, tmp_path: Path
) -> None:
    """In one step of SGD, decay adds -lr * decay * weight to each parameter, BN and biases included or not."""
    after = {}
    for decay in (0.0, 0.25):
        changes = (*FOUR_STEPS, "train.precision=fp64", f"optim.weight_decay={decay}", *decay_changes)
        loop = make_loop(make_run(tmp_path / str(decay), tiny_config(tiny_root, *changes)), SingleWorkerComms())
        loop.resume()
        start = {name: parameter.detach().clone() for name, parameter in loop.engine.network.named_parameters()}
        loop._train_one_step()
        after[decay] = dict(loop.engine.network.named_parameters())
    without_decay = {name for name in start if name.endswith(("bias", "gamma", "beta")) or start[name].ndim == 1}
    assert any(name.endswith("gamma") for name in without_decay)
    for name, weight in start.items():
        decay = 0.0 if decay_changes and name in without_decay else 0.25
        torch.testing.assert_close(after[0.25][name], after[0.0][name] - 0.05 * decay * weight)


@pytest.mark.parametrize("method", ["plain", "byot"])
def test_other_methods_train_with_the_same_loop(method: str, tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *FOUR_STEPS, f"method={method}"))
    train_run(SingleWorkerComms(), run.path)
    last = read_records(run)[-1]
    expected = {"plain": {"deepest"}, "byot": {"branch1", "branch2", "deepest", "ensemble"}}[method]
    assert {name.removesuffix("_top1") for name in last if name.endswith("_top1")} == expected


@pytest.mark.parametrize(
    "changes",
    [
        ("train.precision=bf16", "train.channels_last=true"),
        ("optim.clip_norm=0.1", "optim.nesterov=true"),
        ("data.cutout=8", "data.flip=false", "data.crop_padding=0"),
        ("data.mixup=0.2", "train.label_smoothing=0.1", "distill.teacher=ensemble"),
        ("distill.beta=0", "distill.alpha=0"),
        ("train.label_smoothing=0.1", "model.sem_groups=4", "model.branches=[stage2]"),
    ],
    ids=lambda changes: " ".join(changes),
)
def test_every_training_option_trains(changes: tuple[str, ...], tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *FOUR_STEPS, *changes))
    assert train_run(SingleWorkerComms(), run.path) == "finished"


def test_gradients_are_clipped_to_the_norm(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", tiny_config(tiny_root, *FOUR_STEPS, "optim.clip_norm=0.01", "optim.weight_decay=0")
    )
    loop = make_loop(run, SingleWorkerComms())
    loop.resume()
    parameters = list(loop.engine.network.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    loop._train_one_step()
    change = [(now.detach() - then).flatten() for now, then in zip(parameters, before, strict=True)]
    assert torch.cat(change).norm().item() == pytest.approx(0.05 * 0.01, rel=1e-3)


def test_all_layouts_and_precisions_agree_in_the_first_step(tiny_root: Path, tmp_path: Path) -> None:
    losses = {}
    for precision, layout in (("fp64", "false"), ("fp32", "false"), ("fp32", "true"), ("bf16", "true")):
        formats = (f"train.precision={precision}", f"train.channels_last={layout}")
        config = tiny_config(tiny_root, *FOUR_STEPS, *formats, "train.max_steps=1")
        run = make_run(tmp_path / f"{precision}-{layout}", config)
        train_run(SingleWorkerComms(), run.path)
        losses[precision, layout] = read_records(run)[0]["loss"]
    assert losses["fp32", "false"] == pytest.approx(losses["fp64", "false"], rel=1e-5)
    assert losses["fp32", "true"] == pytest.approx(losses["fp64", "false"], rel=1e-5)
    assert losses["bf16", "true"] == pytest.approx(losses["fp64", "false"], rel=2e-2)


def test_a_set_that_is_smaller_than_the_batch_is_an_error(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, "train.batch=512"))
    with pytest.raises(ConfigError, match=r"train\.batch 512 is larger than one epoch of the training set"):
        make_loop(run, SingleWorkerComms())


def test_a_worker_without_its_own_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="worker 1 of this node needs its own GPU, 1 visible"):
        choose_device("cuda", World(rank=1, size=2, local_rank=1))
    assert choose_device("cpu", World()) == CPU


def test_a_worker_needs_only_the_run_directory(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *FOUR_STEPS))
    assert RunDir(run.path) == run
    train_alone(run, attempt=1)
    assert not run.stop_request.exists()
