"""The training loop of one worker.

Training, evaluation and logging depend only on the position, so that a resumed run takes the same steps. Only the time
of a checkpoint may depend on the clock.
"""

from dataclasses import dataclass, field

from fmfsd.checkpoint import Checkpoint, CheckpointManager
from fmfsd.checkpoint.init_weights import load_init_weights
from fmfsd.config import RunConfig, TrainSchedule
from fmfsd.data.loading.batches import EvaluationBatches, TrainBatches
from fmfsd.distributed.collectives import Comms
from fmfsd.engine.interface import Engine
from fmfsd.errors import NonFiniteLossError, WeightsDivergedError
from fmfsd.evaluation.accumulator import Evaluation
from fmfsd.evaluation.eval_artifacts import EvalArtifacts, NoEvalArtifacts
from fmfsd.evaluation.heads import evaluate
from fmfsd.losses import SelfDistillLoss
from fmfsd.optim import learning_rate
from fmfsd.run.heartbeat import HeartbeatFile
from fmfsd.run.metrics import MetricsLog, RunningMeans
from fmfsd.run.train_position import TrainPosition
from fmfsd.training.step_all_reduce import StepAllReduce, StepResult
from fmfsd.training.stop_flag import StopFlag
from fmfsd.training.timers import SaveClock, StepTimer
from fmfsd.training.trace import NoTrace, Trace


@dataclass
class Loop:
    """The parts of one worker and the loop over them. `evaluations`: the evaluated splits by name."""

    config: RunConfig
    timeline: TrainSchedule
    comms: Comms
    engine: Engine
    loss: SelfDistillLoss
    step_all_reduce: StepAllReduce
    batches: TrainBatches
    evaluations: dict[str, EvaluationBatches]
    checkpoints: CheckpointManager
    metrics: MetricsLog
    progress: HeartbeatFile
    stop: StopFlag
    save_clock: SaveClock
    position: TrainPosition = field(default_factory=TrainPosition)
    means: RunningMeans = field(default_factory=RunningMeans)
    step_timer: StepTimer = field(default_factory=StepTimer)
    trace: Trace = field(default_factory=NoTrace)
    eval_artifacts: EvalArtifacts = field(default_factory=NoEvalArtifacts)
    score: float | None = None
    """Validation accuracy at `position`; None if it was not evaluated there."""
    is_best: bool = False
    """`score` is higher than that of every checkpoint."""
    stop_agreed: bool = False
    save_agreed: bool = False

    def run(self) -> str:
        """Train to the end or until a stop is requested, save, and return "finished" or "stopped"."""
        self.stop_agreed = self.comms.any(self.stop.requested)
        while not self.finished and not self.stop_agreed:
            if self.position.evaluated:
                self._train_one_step()
            else:
                self._evaluate()
            if self._save_due():
                self._save()
            self._check_saves()
        if not self.finished:
            self._save()
        self._report_progress("save")
        self.checkpoints.finish()
        return "finished" if self.finished else "stopped"

    def close(self) -> None:
        """Close files, and stop the threads that write checkpoints and read images."""
        self.checkpoints.close()
        self.metrics.close()
        self.batches.close()
        for batches in self.evaluations.values():
            batches.close()

    @property
    def finished(self) -> bool:
        return self.timeline.is_last(self.position.step) and self.position.evaluated

    def resume(self) -> bool:
        """Resume from the newest checkpoint, or start anew if there is none; return True if resumed."""
        saved = self.checkpoints.load_newest()
        if saved is not None:
            self.engine.load(saved.engine)
            self.position = saved.position
            self.means = RunningMeans(**saved.progress["means"])
        elif self.config.train.init_from is not None:
            load_init_weights(self.config.train.init_from, self.engine, self.comms)
        self.metrics.truncate(saved.progress["records"] if saved is not None else 0)
        if self.engine.is_compiled:
            self._report_progress("compile")
        self.engine.warm_up(lambda: self._forward_backward(0, 0, 1))
        self.step_all_reduce.clear()
        self.trace.clear()
        self.step_timer.pop()
        return saved is not None

    def _train_one_step(self) -> None:
        step, micro_steps = self.position.step, self.config.train.batch // self.config.micro_batch
        waited_before_s = self.comms.activity.waited_s
        with self.step_timer.step(self.config.train.batch):
            for micro_step in range(micro_steps):
                self._forward_backward(step, micro_step, micro_steps)
            self.trace.record_step(step + 1, self.engine)
            self.engine.step(self._learning_rate(step))
            log_due = self.timeline.log_due(step + 1)
            self._handle_results(wait=log_due)
        self.position = TrainPosition(step + 1, evaluated=not self.timeline.evaluation_due(step + 1))
        self.score, self.is_best = None, False
        self.step_timer.busy_s += self.step_timer.last_step_s - (self.comms.activity.waited_s - waited_before_s)
        self.progress.constants["busy_s"] = round(self.step_timer.busy_s, 3)
        self._report_progress("train")
        if log_due:
            self._record("train", **self.means.pop(), **self._rates(step), **self.step_timer.pop())

    def _rates(self, step: int) -> dict[str, float]:
        """Return the learning rate of `step` and, in fp16, the loss scale of the next step."""
        scale = self.engine.loss_scale
        return {"lr": self._learning_rate(step), **({"loss_scale": scale} if scale is not None else {})}

    def _forward_backward(self, step: int, micro_step: int, micro_steps: int) -> None:
        epoch, step_in_epoch = divmod(step, self.timeline.steps_per_epoch)
        micro_batch = epoch, step_in_epoch * micro_steps + micro_step
        with self.step_timer.waiting():
            images, labels = self.batches.load_batch(*micro_batch)
        self.trace.record_batch(self.batches, *micro_batch)
        with self.engine.accumulating(last=micro_step == micro_steps - 1):
            terms = self.engine.compute_terms(images, labels)
            squares_F = self.step_all_reduce.all_reduce(step, terms, stop=self.stop.requested, save=self.save_clock.due)
            total = self.loss.total(terms, squares_F, world_size=self.comms.size)
            self.engine.backward(total / micro_steps)

    def _evaluate(self) -> None:
        """Evaluate every split that is due; if a stop is requested in between, abort and log nothing."""
        self._handle_results(wait=True)
        self._report_progress("evaluate")
        self.engine.unify_buffers()
        results = {}
        for split in self._splits_due():
            evaluation = self._evaluate_split(split)
            if evaluation is None:
                self.stop_agreed = True
                return
            self._require_finite(split, evaluation)
            results[split] = evaluation
        for split, evaluation in results.items():
            self._record(split, **evaluation.metrics)
            self.eval_artifacts.write_evaluation(split, self.position.step, evaluation)
        if "valid" in results:
            self._set_score(results["valid"].metrics["deepest_top1"])
        if results and self.timeline.attention_due(self.position.step):
            self.eval_artifacts.write_attention(self.engine, self.position.step)
        self.position = TrainPosition(self.position.step)

    def _require_finite(self, split: str, evaluation: Evaluation) -> None:
        if names := evaluation.non_finite_values:
            where = f"on the {split} split after step {self.position.step}"
            raise NonFiniteLossError(f"{names[0]} is not finite {where}. {self._advice}")

    def _evaluate_split(self, split: str) -> Evaluation | None:
        """Return the evaluation of a split, or None if a stop was requested."""
        return evaluate(
            self.engine,
            self.evaluations[split],
            self.comms,
            stop=lambda: self.stop.requested,
            report=lambda done: self._report_progress("evaluate", evaluated=round(done, 3)),
        )

    def _set_score(self, score: float) -> None:
        best = self.checkpoints.best_score()
        self.score, self.is_best = score, best is None or score > best

    def _splits_due(self) -> list[str]:
        """Return the splits to evaluate. With a validation split the test split is evaluated only once, at the end."""
        test_due = "valid" not in self.evaluations or self.timeline.is_last(self.position.step)
        return [split for split in self.evaluations if split != "test" or test_due]

    def _save_due(self) -> bool:
        """Return True if a checkpoint is due: by step, by the clock (all workers agree), or for a new best score."""
        by_step = self.position.evaluated and self.timeline.checkpoint_due(self.position.step)
        return by_step or self.save_agreed or self.is_best

    def _save(self) -> None:
        self._handle_results(wait=True)
        self._report_progress("save")
        self._require_equal_weights()
        progress = {"means": self.means.state(), "records": self.metrics.records}
        self.checkpoints.save(Checkpoint(self.position, self.engine.state(), progress, self.score))
        self._report_progress("train")
        self.save_agreed = self.is_best = False
        self.save_clock.restart()

    def _check_saves(self) -> None:
        """Raise if checkpoints keep failing; report how long a stop will take: one step and one save."""
        self.checkpoints.poll()
        if self.checkpoints.save_s:
            takes_s = self.step_timer.last_step_s + self.checkpoints.save_s
            self.progress.constants["stop_takes_s"] = round(takes_s, 3)

    def _require_equal_weights(self) -> None:
        """Raise WeightsDivergedError on all workers if the weights of any worker differ from those of rank 0."""
        checksum = self.engine.weights_checksum()
        of_rank_0 = checksum.clone()
        self.comms.broadcast_(of_rank_0)
        differs = bool(checksum != of_rank_0)
        if self.comms.any(differs):
            step = self.position.step
            whose = "this worker's differ" if differs else "another worker's differ"
            raise WeightsDivergedError(
                f"the workers' weights are no longer the same after step {step}: {whose} from rank 0's"
            )

    def _handle_results(self, *, wait: bool) -> None:
        for result in self.step_all_reduce.pop_results(wait=wait):
            if not result.finite:
                raise NonFiniteLossError(self._non_finite_message(result))
            self.means.add(**result.losses())
            self.stop_agreed = self.stop_agreed or result.stop
            self.save_agreed = self.save_agreed or result.save

    def _non_finite_message(self, result: StepResult) -> str:
        values = ", ".join(f"{name} {value:g}" for name, value in result.losses().items())
        epoch = self.timeline.epoch(result.step) + 1
        return f"the loss is not finite in step {result.step + 1}, epoch {epoch} ({values}). {self._advice}"

    @property
    def _advice(self) -> str:
        return (
            f"Earlier checkpoints are unchanged. Lower optim.lr ({self.config.optim.lr:g}), set optim.clip_norm, "
            "or set train.precision to fp32"
        )

    def _record(self, split: str, **values: float) -> None:
        epoch = self.timeline.epoch(self.position.step - 1) + 1
        self.metrics.write(step=self.position.step, epoch=epoch, split=split, **values)

    def _report_progress(self, state: str, **values: float) -> None:
        totals = {"total_steps": self.timeline.total_steps, "steps_per_epoch": self.timeline.steps_per_epoch}
        values = {**self.means.compute(), **self.step_timer.peek()} if state == "train" else values
        self.progress.update(state, step=self.position.step, **totals, **values)

    def _learning_rate(self, step: int) -> float:
        return learning_rate(
            step,
            base=self.config.peak_lr,
            gamma=self.config.optim.gamma,
            milestones=self.timeline.milestones,
            warmup_steps=self.timeline.warmup_steps,
        )
