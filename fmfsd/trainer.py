"""Trains one run, as one worker of any number: build the parts, resume, the loop."""

import logging
import time
from pathlib import Path

import torch

from fmfsd.checkpoint import Checkpoints
from fmfsd.comms import Comms, connect
from fmfsd.config import Timeline, TrainConfig, load_config
from fmfsd.data.batches import EvaluationBatches, TrainBatches
from fmfsd.data.index import SetIndex, read_index, set_folder
from fmfsd.data.shards import load_own_shards
from fmfsd.distill import SelfDistillLoss
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.errors import ConfigError
from fmfsd.files import read_json, write_json
from fmfsd.loop import Loop
from fmfsd.metrics import MetricsLog, last_records
from fmfsd.model.build import build_network
from fmfsd.preemption import StopFlag
from fmfsd.progress import ProgressFile
from fmfsd.reduction import StepReduction
from fmfsd.rundir import RunDir
from fmfsd.world import World

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""Type of weights and images for each precision; bf16 is autocast over fp32."""


def train(run: RunDir, world: World, device: torch.device, *, attempt: int) -> str:
    """Train the run in `run` to its end or to a stop request: "finished" or "stopped".

    Rank 0 writes metrics, checkpoints and the outcome; every worker writes its own progress.
    """
    config = load_config(str(run.config))
    _exact_arithmetic()
    progress = ProgressFile(run.rank_progress(world.rank), rank=world.rank, world_size=world.size, attempt=attempt)
    with StopFlag(run.stop_request if world.is_main else None) as stop, connect(world, device) as comms:
        progress.show("setup", step=0)
        loop = build_loop(run, config, comms, device, stop, progress)
        resumed = loop.resume()
        progress.constants["went_on_after"] = loop.position.step if resumed else None
        log.info(
            "%s after step %d of %d", "resumed" if resumed else "started", loop.position.step, loop.timeline.total_steps
        )
        state = loop.run()
        progress.show(state, step=loop.position.step)
        if world.is_main:
            _write_outcome(run, state, loop.position.step, attempt)
    return state


def choose_device(asked: str, world: World) -> torch.device:
    """`cuda`, `cpu`, or `auto`: a GPU if this process sees one. ConfigError if there is no GPU for this worker."""
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if world.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"worker {world.local_rank} of this node needs a GPU of its own, {torch.cuda.device_count()} visible"
        )
    device = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(device)
    return device


def build_loop(
    run: RunDir, config: TrainConfig, comms: Comms, device: torch.device, stop: StopFlag, progress: ProgressFile
) -> Loop:
    """Every part of this worker, from `config`. Raises DataError or ConfigError where they do not fit."""
    index = read_index(set_folder(config.data))
    timeline = Timeline.of(config, index.samples("train"))
    _require_fit(config, timeline, comms.size)
    _log_consequences(config, timeline, index.samples("train"), comms.size)
    network = build_network(config)
    return Loop(
        config=config,
        timeline=timeline,
        comms=comms,
        engine=TorchEngine(network, config, comms, device),
        loss=build_loss(config),
        reduction=StepReduction(comms, device, beta=config.distill.beta),
        batches=_train_batches(config, index, comms, device),
        evaluations={
            split: _evaluation(config, index, split, comms, device) for split in index.splits if split != "train"
        },
        checkpoints=Checkpoints(run.checkpoints, comms, keep=config.checkpoint.keep),
        metrics=MetricsLog(run.metrics if comms.rank == 0 else None, _started(run.manifest)),
        progress=progress,
        stop=stop,
    )


def _require_fit(config: TrainConfig, timeline: Timeline, world_size: int) -> None:
    if config.data.shards % world_size:
        raise ConfigError(f"{world_size} workers do not divide data.shards {config.data.shards}")
    if timeline.steps_per_epoch < 1:
        raise ConfigError(f"train.batch {config.train.batch} is more than the training set gives in one epoch")


def _log_consequences(config: TrainConfig, timeline: Timeline, samples: int, world_size: int) -> None:
    """What follows from the config and is easily overlooked."""
    if left_out := samples - timeline.steps_per_epoch * config.train.batch:
        log.info("%d of %d training samples are left out of each epoch, others each time", left_out, samples)
    if world_size > 1 and config.model.sync_bn is False:
        log.warning("model.sync_bn is off: results depend on the number of workers, now %d", world_size)


def build_loss(config: TrainConfig) -> SelfDistillLoss:
    """The loss with the weights of `config`."""
    distill = config.distill
    return SelfDistillLoss(
        alpha=distill.alpha,
        beta=distill.beta,
        temperature=distill.temperature,
        label_weight=distill.label_weight,
        label_smoothing=config.train.label_smoothing,
    )


def _train_batches(config: TrainConfig, index: SetIndex, comms: Comms, device: torch.device) -> TrainBatches:
    shards = load_own_shards(index, "train", rank=comms.rank, world_size=comms.size).to(device)
    per_shard = config.micro_batch // config.data.shards
    return TrainBatches(
        shards, config.data, seed=config.seed, per_shard=per_shard, dtype=DTYPES[config.train.precision]
    )


def _evaluation(
    config: TrainConfig, index: SetIndex, split: str, comms: Comms, device: torch.device
) -> EvaluationBatches:
    return EvaluationBatches(
        load_own_shards(index, split, rank=comms.rank, world_size=comms.size).to(device),
        config.data,
        batch=config.train.evaluate_batch,
        largest_part=index.largest_part(split, comms.size),
        dtype=DTYPES[config.train.precision],
    )


def _exact_arithmetic() -> None:
    """fp32 means fp32: cuDNN would otherwise use TF32, which keeps 10 bits of the mantissa."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _started(manifest: Path) -> float:
    """When the run was first started, in seconds since 1970; now, for a run that no launcher made."""
    return float(read_json(manifest)["started"]) if manifest.exists() else time.time()


def _write_outcome(run: RunDir, state: str, step: int, attempt: int) -> None:
    content = {"state": state, "attempt": attempt, "step": step, "metrics": last_records(run.metrics)}
    write_json(run.outcome, {**content, "resumable": state != "finished"})
    run.stop_request.unlink(missing_ok=True)
