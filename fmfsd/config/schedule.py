"""The schedule of a run: the steps of logging, evaluation, checkpoints, milestones and warm-up.

All durations of a config are converted to steps here.
"""

from dataclasses import dataclass

from fmfsd.config.schema import CheckpointConfig, RunConfig

ATTENTION_SNAPSHOTS = 10
"""Number of attention-mask snapshots per run."""


@dataclass(frozen=True)
class TrainSchedule:
    """Intervals and times in steps. An epoch is the number of whole batches in one permutation of the shards."""

    steps_per_epoch: int
    total_steps: int
    log_every: int
    evaluate_every: int
    checkpoint_every: tuple[int, ...]
    milestones: tuple[int, ...]
    warmup_steps: int

    @classmethod
    def from_config(cls, config: RunConfig, train_samples: int) -> "TrainSchedule":
        """Return the timeline for `train_samples` samples; 0 steps per epoch if they do not fill a batch."""
        shards = config.data.shards
        steps_per_epoch = (train_samples // shards) // max(1, config.train.batch // shards)
        total, warmup = config.train.epochs * steps_per_epoch, config.optim.warmup
        return cls(
            steps_per_epoch=steps_per_epoch,
            total_steps=min(total, config.train.max_steps or total),
            log_every=config.train.log_every.to_steps(steps_per_epoch),
            evaluate_every=config.train.evaluate_every.to_steps(steps_per_epoch),
            checkpoint_every=_checkpoint_every(config.checkpoint, steps_per_epoch),
            milestones=tuple(point.to_steps(steps_per_epoch) for point in config.optim.milestones),
            warmup_steps=warmup.to_steps(steps_per_epoch) if warmup is not None else 0,
        )

    def epoch(self, step: int) -> int:
        """Return the epoch, from 0, of the step that follows `step` finished steps."""
        return step // self.steps_per_epoch

    def is_last(self, step: int) -> bool:
        return step >= self.total_steps

    def log_due(self, step: int) -> bool:
        return step % self.log_every == 0 or self.is_last(step)

    def evaluation_due(self, step: int) -> bool:
        return step > 0 and (step % self.evaluate_every == 0 or self.is_last(step))

    def attention_due(self, step: int) -> bool:
        """Return whether the evaluation at `step` saves attention masks.

        ATTENTION_SNAPSHOTS of the evaluations do, evenly spaced and including the last; all of them if there are fewer.
        """
        number, total = (-(-each // self.evaluate_every) for each in (step, self.total_steps))
        return number * ATTENTION_SNAPSHOTS // total > (number - 1) * ATTENTION_SNAPSHOTS // total

    def checkpoint_due(self, step: int) -> bool:
        return step > 0 and (any(step % every == 0 for every in self.checkpoint_every) or self.is_last(step))


def _checkpoint_every(checkpoint: CheckpointConfig, steps_per_epoch: int) -> tuple[int, ...]:
    by_epochs = (checkpoint.every_epochs or 0) * steps_per_epoch
    return tuple(every for every in (by_epochs, checkpoint.every_steps) if every)
