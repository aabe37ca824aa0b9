"""Training of one run in one of any number of workers: build the parts, resume, run the loop."""

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fmfsd.checkpoint import CheckpointManager, CheckpointStore
from fmfsd.config import RunConfig, TrainSchedule, dump_config
from fmfsd.config.names import TIMM
from fmfsd.data.loading.batches import TrainBatches
from fmfsd.data.loading.load_shards import open_worker_shards, should_stream_images
from fmfsd.data.shards.index import SetIndex, prepared_set_folder, read_index
from fmfsd.distributed.collectives import Comms
from fmfsd.distributed.preflight import run_preflight
from fmfsd.distributed.process_group import join_process_group
from fmfsd.distributed.world import World
from fmfsd.engine.build import build_engine, build_loss
from fmfsd.engine.precision import DTYPES, configure_arithmetic
from fmfsd.errors import ConfigError, WorkerMismatchError
from fmfsd.evaluation.eval_artifacts import EvalArtifacts, EvalArtifactWriter, NoEvalArtifacts, select_images
from fmfsd.evaluation.heads import evaluation_batches
from fmfsd.evaluation.trained_run import describe_data, disable_pretrained, load_run_config
from fmfsd.model.build import build_network
from fmfsd.run.heartbeat import HeartbeatFile
from fmfsd.run.metrics import MetricsLog, read_last_records
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, sha256, write_json
from fmfsd.trackers import Trackers, build_trackers
from fmfsd.training.attempt_fence import AttemptFence
from fmfsd.training.loop import Loop
from fmfsd.training.profile_hook import NoProfile, Profile
from fmfsd.training.step_all_reduce import StepAllReduce
from fmfsd.training.stop_flag import StopFlag
from fmfsd.training.timers import SaveClock
from fmfsd.training.trace import TraceWriter

log = logging.getLogger(__name__)


def train(
    run: RunDir,
    world: World,
    device: torch.device,
    progress: HeartbeatFile,
    fence: AttemptFence,
    *,
    timeout_s: float,
    preflight: bool = False,
    traced: bool = False,
    profile: Profile | None = None,
) -> str:
    """Train the run in `run` to its end or until a stop is requested; return "finished" or "stopped".

    Rank 0 writes metrics, checkpoints and the outcome; every worker writes its own progress. `timeout_s`: timeout of
    collectives, in seconds. `preflight`: test device and collectives before anything is loaded. `traced`: write the
    samples, losses and gradients of each step. `profile` may wrap the loop and its collectives.
    """
    config = load_run_config(run)
    configure_arithmetic(deterministic=config.train.deterministic)
    progress.update("connect", step=0)
    stop = StopFlag(run.stop_request if world.is_main else None)
    trackers = build_trackers(run, config, _started(run.manifest), warn=progress.warn) if world.is_main else Trackers()
    profile = profile or NoProfile()
    with stop, trackers, profile, join_process_group(world, device, timeout_s=timeout_s) as comms:
        progress.count_collectives = lambda: (comms.activity.calls, comms.activity.waiting)
        progress.update("setup", step=0)
        _require_alike(comms, config)
        if preflight:
            run_preflight(comms, world, device, warn=progress.warn)
        loop = profile.wrap_loop(build_loop(run, config, profile.wrap_comms(comms), device, stop, progress, fence))
        loop.trace = TraceWriter(run, world.rank) if traced else loop.trace
        loop.metrics.on_record = trackers.log
        with closing(loop):
            state = _run(loop)
            best = loop.checkpoints.best_score()
        if world.is_main:
            fence.require_current()
            _write_outcome(run, state, loop.position.step, best, fence.attempt)
        progress.update(state, step=loop.position.step)
    return state


def _run(loop: Loop) -> str:
    resumed = loop.resume()
    loop.progress.constants["went_on_after"] = loop.position.step if resumed else None
    action = "resumed" if resumed else "started"
    log.info("%s after step %d of %d", action, loop.position.step, loop.timeline.total_steps)
    return loop.run()


def choose_device(requested: str, world: World) -> torch.device:
    """Return the device for `requested`: `cuda`, `cpu`, or `auto` (a GPU if this process sees one).

    ConfigError if there is no GPU for this worker.
    """
    if requested == "cpu" or (requested == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if world.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"worker {world.local_rank} of this node needs its own GPU, {torch.cuda.device_count()} visible: "
            "start fewer workers or use --device cpu"
        )
    device = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(device)
    return device


def build_loop(
    run: RunDir,
    config: RunConfig,
    comms: Comms,
    device: torch.device,
    stop: StopFlag,
    progress: HeartbeatFile,
    fence: AttemptFence,
) -> Loop:
    """Build all parts of this worker from `config`. Raises DataError or ConfigError if they do not fit together."""
    index = read_index(prepared_set_folder(config.data))
    timeline = TrainSchedule.from_config(config, index.num_samples("train"))
    _require_fit(config, timeline, index, comms.size)
    _log_consequences(config, timeline, index.num_samples("train"), comms.size)
    if comms.rank == 0 and not run.classes.exists():
        write_json(run.classes, describe_data(index, config))
    network, loss = build_network(_network_config(config, run)), build_loss(config)
    splits = list(_evaluated_splits(config, index))
    in_files = should_stream_images(config.data, index, comms, device)
    return Loop(
        config=config,
        timeline=timeline,
        comms=comms,
        engine=build_engine(network, loss, config, comms, device),
        loss=loss,
        step_all_reduce=StepAllReduce(comms, device, beta=config.distill.beta),
        batches=_train_batches(config, index, comms, device, in_files),
        evaluations={split: evaluation_batches(config, index, split, comms, device, in_files) for split in splits},
        checkpoints=CheckpointManager(
            CheckpointStore(run.checkpoints, keep=config.checkpoint.keep, check_fence=fence.require_current),
            comms,
            warn=progress.warn,
        ),
        metrics=MetricsLog(run.metrics if comms.rank == 0 else None, _started(run.manifest)),
        progress=progress,
        stop=stop,
        eval_artifacts=_build_artifacts(run, config, index, splits, device, progress)
        if comms.rank == 0
        else NoEvalArtifacts(),
        save_clock=SaveClock(config.checkpoint.every_minutes if comms.rank == 0 else None),
    )


def _network_config(config: RunConfig, run: RunDir) -> RunConfig:
    """Return the config to build the network from: without pretrained weights if others will be loaded."""
    has_weights = run.newest_step() is not None or config.train.init_from is not None
    return disable_pretrained(config) if has_weights else config


def _build_artifacts(
    run: RunDir,
    config: RunConfig,
    index: SetIndex,
    splits: list[str],
    device: torch.device,
    progress: HeartbeatFile,
) -> EvalArtifacts:
    """Use images of the validation split, or of the test split if there is no other."""
    if not splits:
        return NoEvalArtifacts()
    split = splits[0]
    return EvalArtifactWriter(run, index.classes, select_images(index, split, config, device), split, progress.warn)


def _evaluated_splits(config: RunConfig, index: SetIndex) -> Iterator[str]:
    for split in index.splits:
        if split != "train" and (split != "test" or config.train.evaluate_test):
            yield split


def _require_fit(config: RunConfig, timeline: TrainSchedule, index: SetIndex, world_size: int) -> None:
    if len(index.classes) != config.data.num_classes:
        raise ConfigError(f"{index.folder} has {len(index.classes)} classes, data.classes is {config.data.num_classes}")
    if config.data.shards % world_size:
        raise ConfigError(f"{world_size} workers do not divide data.shards {config.data.shards}: use a divisor of it")
    if config.train.compile == "cuda_graphs" and world_size > 1:
        raise ConfigError(
            f"train.compile cuda_graphs works with one worker only, found {world_size}: set it to true or false"
        )
    if timeline.steps_per_epoch < 1:
        raise ConfigError(f"train.batch {config.train.batch} is larger than one epoch of the training set: lower it")


def _log_consequences(config: RunConfig, timeline: TrainSchedule, samples: int, world_size: int) -> None:
    """Log consequences of the config that are easily overlooked."""
    if left_out := samples - timeline.steps_per_epoch * config.train.batch:
        log.info("%d of %d training samples are left out of each epoch, different ones each time", left_out, samples)
    if world_size > 1 and config.model.sync_bn is False:
        log.warning("model.sync_bn is off: results depend on the number of workers (%d)", world_size)


def _train_batches(
    config: RunConfig, index: SetIndex, comms: Comms, device: torch.device, in_files: bool
) -> TrainBatches:
    shards = open_worker_shards(index, "train", rank=comms.rank, world_size=comms.size, device=device, stream=in_files)
    per_shard = config.micro_batch // config.data.shards
    return TrainBatches(
        shards, config.data, seed=config.seed, per_shard=per_shard, dtype=DTYPES[config.train.precision]
    )


def _started(manifest: Path) -> float:
    """Return when the run was first started, in seconds since 1970; the current time if there is no manifest."""
    return float(read_json(manifest)["started"]) if manifest.exists() else time.time()


def _require_alike(comms: Comms, config: RunConfig) -> None:
    """Raise UnlikeError on all workers if the config, data set or software of any differs from rank 0's."""
    backbone_packages = ["timm"] if config.model.backbone.startswith(TIMM) else []
    engine_packages = ["deepspeed"] if config.engine.name == "deepspeed" else []
    packages = ["torch", "torchvision", "numpy", "safetensors", *backbone_packages, *engine_packages]
    local = {
        "config": dump_config(config),
        "data": sha256(prepared_set_folder(config.data) / "index.json"),
        **{package: _version(package) for package in packages},
    }
    of_rank_0 = comms.broadcast_object(local)
    differing = [name for name, value in local.items() if value != of_rank_0[name]]
    if comms.any(bool(differing)):
        whose = f"this worker's {', '.join(differing)}" if differing else "another worker's"
        raise WorkerMismatchError(f"{whose} differs from rank 0's: install the same files and packages on every node")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write_outcome(run: RunDir, state: str, step: int, best: float | None, attempt: int) -> None:
    content = {"state": state, "attempt": attempt, "step": step, "metrics": read_last_records(run.metrics)}
    best_metric = {"best_valid_top1": best} if best is not None else {}
    write_json(run.outcome, {**content, **best_metric, "resumable": state != "finished"})
    run.stop_request.unlink(missing_ok=True)
