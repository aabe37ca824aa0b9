"""Reading the files of a run; any of them may be missing, as in a running, failed or copied run."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fmfsd.errors import CheckError, Problem
from fmfsd.run.run_dir import RunDir

Content = Mapping[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """Contents of a run's files; empty for a file that is missing or incomplete."""

    run: RunDir
    config: dict[str, Any]
    manifest: Content = field(default_factory=dict)
    outcome: Content = field(default_factory=dict)
    records: list[Content] = field(default_factory=list)
    evaluations: dict[str, Content] = field(default_factory=dict)
    early_exits: dict[str, Content] = field(default_factory=dict)
    attention_maps: list[Content] = field(default_factory=list)
    pictures: Content = field(default_factory=dict)
    attempts: list[Content] = field(default_factory=list)
    workers: list[Content] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def config_values(self) -> dict[str, Any]:
        """Config values by dotted key, without the seed."""
        return {key: value for key, value in _dotted(self.config) if key != "seed"}

    def records_of_split(self, name: str) -> list[Content]:
        """Return the records of a split."""
        return [record for record in self.records if record.get("split") == name]

    @property
    def state(self) -> str:
        if self.outcome:
            return str(self.outcome.get("state", ""))
        return "not finished" if self.records or self.attempts else "not started"


SPLITS = ("train", "valid", "test")


def read_run(path: Path) -> RunFiles:
    """Read the files of the run in `path`. CheckError if it is not the folder of a run."""
    run = RunDir(path.absolute())
    try:
        config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise CheckError(
            [Problem(str(path), f"not the folder of a run: its config.yaml can't be read: {error}")]
        ) from error
    return RunFiles(
        run=run,
        config=config,
        manifest=_object(run.manifest),
        outcome=_object(run.outcome),
        records=list(_lines(run.metrics)),
        evaluations=_by_split({split: run.evaluation(split) for split in SPLITS}),
        early_exits=_by_split({split: run.early_exits(split) for split in SPLITS}),
        attention_maps=[content for each in run.attention_files() if (content := _object(each))],
        pictures=_object(run.attention_images),
        attempts=[each for number in range(1, run.last_attempt() + 1) if (each := _object(run.attempt(number)))],
        workers=[each for path in sorted(run.progress.glob("rank-*.json"), key=_number) if (each := _object(path))],
    )


def _by_split(paths: Mapping[str, Path]) -> dict[str, Content]:
    return {split: content for split, path in paths.items() if (content := _object(path))}


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("rank-")
    return int(digits) if digits.isdecimal() else -1


def _object(path: Path) -> Content:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _lines(path: Path) -> Iterator[Content]:
    """Yield the complete lines: the last one may be incomplete while the run writes it."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def _dotted(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
