"""The one place that knows the file names of a run."""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fmfsd.run.train_position import positions_in
from fmfsd.system.file_locks import lock_file

NOW = "now"
"""The content of a stop request that does not wait for a checkpoint."""


@dataclass(frozen=True)
class RunDir:
    """A run's folder, the contract between launcher, workers and reports."""

    path: Path

    @classmethod
    def fresh(cls, parent: Path, config_name: str) -> "RunDir":
        """A name that no run has yet: `<config>-<UTC time>-<4 hex>`. Nothing is created."""
        moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        return cls((parent / f"{config_name}-{moment}-{secrets.token_hex(2)}").absolute())

    def create(self) -> None:
        for folder in (self.path, *self._folders):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def is_unused(self) -> bool:
        """Whether nothing is there yet, or only what a launch leaves that was killed before it wrote the config."""
        if not self.path.exists():
            return True
        if not self.path.is_dir():
            return False
        allowed = {*self._folders, self.manifest, self.launch, self.lock, lock_file(self.lock), self.owner}
        return all(
            path in allowed and not (path.is_dir() and any(path.iterdir()))
            for path in self.path.iterdir()
            if not path.name.startswith((".manifest.json.", ".launch.json.", ".config.yaml.", ".owner.json."))
        )

    @property
    def _folders(self) -> tuple[Path, ...]:
        return (self.checkpoints, self.attempts, self.progress, self.logs)

    @property
    def lock(self) -> Path:
        """Held by the launch that runs this run."""
        return self.path / "lock"

    @property
    def owner(self) -> Path:
        """Who holds the lock, or was the last to."""
        return self.path / "owner.json"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def launch(self) -> Path:
        """How it was last launched, for whoever launches it again."""
        return self.path / "launch.json"

    @property
    def jobs(self) -> Path:
        """The batch jobs that were submitted for it."""
        return self.path / "jobs.json"

    @property
    def source(self) -> Path:
        """Copies of the program as it was when batch jobs were submitted."""
        return self.path / "source"

    @property
    def classes(self) -> Path:
        """Names of the classes and channel statistics, so that a trained network needs no data set to be used."""
        return self.path / "classes.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def outcome(self) -> Path:
        return self.path / "outcome.json"

    @property
    def stop_request(self) -> Path:
        """Asks whoever runs this run to stop; with NOW as its content, at once."""
        return self.path / "stop-request"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    @property
    def progress(self) -> Path:
        return self.path / "progress"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def wandb_id(self) -> Path:
        """What W&B knows this run by; beside it lies what W&B itself writes."""
        return self.path / "wandb" / "id"

    def evaluation(self, split: str) -> Path:
        """What the network could do on a split when it was last looked at."""
        return self.path / "evaluation" / f"{split}.json"

    def early_exits(self, split: str) -> Path:
        """What early exits saved on a split when that was last measured."""
        return self.path / "evaluation" / f"{split}-exits.json"

    @property
    def attention(self) -> Path:
        """What the fusion attended to in a few images as the training went on."""
        return self.path / "evaluation" / "attention"

    @property
    def pictures(self) -> Path:
        """Those images."""
        return self.attention / "images.json"

    def attention_at(self, step: int) -> Path:
        return self.attention / f"step-{step:08d}.json"

    def all_attention(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.attention.glob("step-*.json"))

    @property
    def trace(self) -> Path:
        """What each step was made from and came to, where a launch asks for that; written by the workers."""
        return self.path / "trace"

    def traced_gradients(self, step: int) -> Path:
        """The gradients of the run's step `step`, from 1, before they were clipped."""
        return self.trace / f"step-{step:08d}-gradients.safetensors"

    def traced_samples(self, step: int, rank: int) -> Path:
        """Official positions of the samples that worker `rank` has taken in the run's step `step`, from 1."""
        return self.trace / f"step-{step:08d}-rank-{rank}.json"

    def all_traced_samples(self, step: int) -> list[Path]:
        """Those of all workers."""
        return sorted(self.trace.glob(f"step-{step:08d}-rank-*.json"))

    @property
    def profile(self) -> Path:
        """Where its steps go, where a launch asks for that; written by the workers."""
        return self.path / "profile"

    def profiled(self, rank: int) -> Path:
        """What the profiler says of worker `rank`, in numbers."""
        return self.profile / f"rank-{rank}.json"

    def profile_trace(self, rank: int) -> Path:
        """And event by event, in the form that browsers show (Perfetto, chrome://tracing)."""
        return self.profile / f"rank-{rank}.trace.json.gz"

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint; None without any."""
        found = positions_in(self.checkpoints)
        return found[0].step if found else None

    def damaged_checkpoints(self) -> list[Path]:
        """Those that were set aside when a run went on."""
        return sorted(self.checkpoints.glob("damaged-*"))

    def attempt(self, number: int) -> Path:
        """How attempt `number` went; written by the coordinator."""
        return self.attempts / f"{number:04d}.json"

    def crash(self, attempt: int, rank: int) -> Path:
        """What ended worker `rank`, in its own words; written by the worker."""
        return self.attempts / f"{attempt:04d}-rank-{rank}.json"

    def crashes(self, attempt: int) -> list[Path]:
        return sorted(self.attempts.glob(f"{attempt:04d}-rank-*.json"))

    def last_attempt(self) -> int:
        """The number of the newest attempt; 0 if there was none."""
        return max(
            (int(path.stem) for path in self.attempts.glob("[0-9]*[0-9].json") if path.stem.isdecimal()), default=0
        )

    def rank_progress(self, rank: int) -> Path:
        return self.progress / f"rank-{rank}.json"

    def node_logs(self, node: int) -> Path:
        return self.logs / f"node-{node}"

    def rank_log(self, node: int, rank: int) -> Path:
        return self.node_logs(node) / f"rank-{rank}.log"

    @property
    def said(self) -> Path:
        """What the coordinator of a trial has to say: nobody sits in front of it."""
        return self.logs / "coordinator.log"

    def starter_log(self, node: int) -> Path:
        """What the node's starter (torchrun, DeepSpeed's launcher) itself prints."""
        return self.node_logs(node) / "starter.log"
