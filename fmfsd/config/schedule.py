"""A run's events on one axis, the optimizer step; every duration is resolved here, once."""

from dataclasses import dataclass

from fmfsd.config.schema import CheckpointConfig, RunConfig

LOOKS = 10
"""So often a run keeps what its fusion attends to."""


@dataclass(frozen=True)
class Timeline:
    """When things happen, in steps. An epoch is what one permutation of the shards gives in whole batches."""

    steps_per_epoch: int
    total_steps: int
    log_every: int
    evaluate_every: int
    checkpoint_every: tuple[int, ...]
    milestones: tuple[int, ...]
    warmup_steps: int

    @classmethod
    def of(cls, config: RunConfig, train_samples: int) -> "Timeline":
        """The timeline of `config` on `train_samples` samples; too few for one batch give 0 steps an epoch."""
        shards = config.data.shards
        steps_per_epoch = (train_samples // shards) // max(1, config.train.batch // shards)
        total, warmup = config.train.epochs * steps_per_epoch, config.optim.warmup
        return cls(
            steps_per_epoch=steps_per_epoch,
            total_steps=min(total, config.train.max_steps or total),
            log_every=config.train.log_every.steps(steps_per_epoch),
            evaluate_every=config.train.evaluate_every.steps(steps_per_epoch),
            checkpoint_every=_checkpoint_every(config.checkpoint, steps_per_epoch),
            milestones=tuple(point.steps(steps_per_epoch) for point in config.optim.milestones),
            warmup_steps=warmup.steps(steps_per_epoch) if warmup is not None else 0,
        )

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that the step after `step` finished steps belongs to."""
        return step // self.steps_per_epoch

    def is_last(self, step: int) -> bool:
        return step >= self.total_steps

    def log_due(self, step: int) -> bool:
        return step % self.log_every == 0 or self.is_last(step)

    def evaluation_due(self, step: int) -> bool:
        return step > 0 and (step % self.evaluate_every == 0 or self.is_last(step))

    def look_due(self, step: int) -> bool:
        """At LOOKS of the evaluations, evenly, the last one among them; at each where there are no more."""
        number, total = (-(-each // self.evaluate_every) for each in (step, self.total_steps))
        return number * LOOKS // total > (number - 1) * LOOKS // total

    def checkpoint_due(self, step: int) -> bool:
        return step > 0 and (any(step % every == 0 for every in self.checkpoint_every) or self.is_last(step))


def _checkpoint_every(checkpoint: CheckpointConfig, steps_per_epoch: int) -> tuple[int, ...]:
    by_epochs = (checkpoint.every_epochs or 0) * steps_per_epoch
    return tuple(every for every in (by_epochs, checkpoint.every_steps) if every)
