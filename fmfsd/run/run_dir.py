"""Layout of a run directory: all file names of a run are defined here."""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fmfsd.run.train_position import list_positions
from fmfsd.system.file_locks import lock_file

STOP_NOW = "now"
"""Content of a stop request that stops the run at once, without a checkpoint."""


@dataclass(frozen=True)
class RunDir:
    """The run directory, the contract between launcher, workers and reports."""

    path: Path

    @classmethod
    def new(cls, parent: Path, config_name: str) -> "RunDir":
        """Return a run directory with an unused name, `<config>-<UTC time>-<4 hex>`. Creates nothing."""
        moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        return cls((parent / f"{config_name}-{moment}-{secrets.token_hex(2)}").absolute())

    def create(self) -> None:
        for folder in (self.path, *self._folders):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def is_unused(self) -> bool:
        """Return whether the directory is missing or empty, or only has the files of a launch killed before its start.

        Such a launch was killed before it wrote the config.
        """
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
        """Lock that the launch of this run holds."""
        return self.path / "lock"

    @property
    def owner(self) -> Path:
        """The current or last holder of the lock."""
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
        """Options of the last launch, for commands that launch the run again."""
        return self.path / "launch.json"

    @property
    def jobs(self) -> Path:
        """Batch jobs submitted for this run."""
        return self.path / "jobs.json"

    @property
    def source(self) -> Path:
        """Snapshots of the source code at the submission of batch jobs."""
        return self.path / "source"

    @property
    def classes(self) -> Path:
        """Class names and channel statistics, so that a trained network can be used without the data set."""
        return self.path / "classes.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def outcome(self) -> Path:
        return self.path / "outcome.json"

    @property
    def stop_request(self) -> Path:
        """File that requests a stop of the run; with the content STOP_NOW, a stop without a checkpoint."""
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
        """File with the run's W&B id; W&B writes its own files into the same folder."""
        return self.path / "wandb" / "id"

    def evaluation(self, split: str) -> Path:
        """Results of the latest evaluation on a split."""
        return self.path / "evaluation" / f"{split}.json"

    def early_exits(self, split: str) -> Path:
        """Latest measured savings of early exits on a split."""
        return self.path / "evaluation" / f"{split}-exits.json"

    @property
    def attention(self) -> Path:
        """Attention masks of the fusion on a few images during training."""
        return self.path / "evaluation" / "attention"

    @property
    def attention_images(self) -> Path:
        """The images of these attention masks."""
        return self.attention / "images.json"

    def attention_file(self, step: int) -> Path:
        return self.attention / f"step-{step:08d}.json"

    def attention_files(self) -> list[Path]:
        """Return the attention mask files, oldest first."""
        return sorted(self.attention.glob("step-*.json"))

    @property
    def trace(self) -> Path:
        """Samples and gradients of each step, if the launch requests a trace; written by the workers."""
        return self.path / "trace"

    def trace_gradients(self, step: int) -> Path:
        """Return the file with the gradients of step `step`, from 1, before clipping."""
        return self.trace / f"step-{step:08d}-gradients.safetensors"

    def trace_samples(self, step: int, rank: int) -> Path:
        """Return the file with the samples that worker `rank` used in step `step`, from 1, as official indices."""
        return self.trace / f"step-{step:08d}-rank-{rank}.json"

    def all_trace_samples(self, step: int) -> list[Path]:
        """Return the sample files of all workers for step `step`."""
        return sorted(self.trace.glob(f"step-{step:08d}-rank-*.json"))

    @property
    def profile(self) -> Path:
        """Time of the steps by part, if the launch requests a profile; written by the workers."""
        return self.path / "profile"

    def profile_result(self, rank: int) -> Path:
        """Return the file with the profile results of worker `rank`."""
        return self.profile / f"rank-{rank}.json"

    def profile_trace(self, rank: int) -> Path:
        """Return the file with the profiler events of worker `rank`, for Perfetto or chrome://tracing."""
        return self.profile / f"rank-{rank}.trace.json.gz"

    def newest_step(self) -> int | None:
        """Return the step of the newest checkpoint, or None without any."""
        positions = list_positions(self.checkpoints)
        return positions[0].step if positions else None

    def damaged_checkpoints(self) -> list[Path]:
        """Return the damaged checkpoints that were renamed when the run was resumed."""
        return sorted(self.checkpoints.glob("damaged-*"))

    def attempt(self, number: int) -> Path:
        """Return the file with the record of attempt `number`; written by the coordinator."""
        return self.attempts / f"{number:04d}.json"

    def crash_report(self, attempt: int, rank: int) -> Path:
        """Return the file with the crash report of worker `rank`; written by the worker."""
        return self.attempts / f"{attempt:04d}-rank-{rank}.json"

    def crash_reports(self, attempt: int) -> list[Path]:
        return sorted(self.attempts.glob(f"{attempt:04d}-rank-*.json"))

    def last_attempt(self) -> int:
        """Return the number of the newest attempt; 0 if there was none."""
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
    def coordinator_log(self) -> Path:
        """Log of a trial's coordinator, which has no terminal."""
        return self.logs / "coordinator.log"

    def starter_log(self, node: int) -> Path:
        """Return the file with the output of the node's starter (torchrun, DeepSpeed's launcher) itself."""
        return self.node_logs(node) / "starter.log"
