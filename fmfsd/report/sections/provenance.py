"""Provenance section: commands, config, versions, hardware."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from fmfsd.report.format_numbers import format_value
from fmfsd.report.html.markup import Html, element, join_markup
from fmfsd.report.html.tables import code_block, collapsible, facts_table, paragraphs, table
from fmfsd.report.read_run import Content, RunFiles
from fmfsd.report.seed_groups import SeedGroup

MAIN_KEYS = (
    "method",
    "model.backbone",
    "model.branches",
    "data.name",
    "data.size",
    "train.batch",
    "train.precision",
    "seed",
)
"""Config keys to show first; the full config is below them."""


def provenance_section(run: RunFiles) -> Html:
    """Return commands, main settings and environment of a run, and its full config, collapsed."""
    values = {**run.config_values, "seed": run.config.get("seed")}
    settings = [(key, format_value(values[key])) for key in MAIN_KEYS if values.get(key) is not None]
    config = collapsible("Full config", code_block(yaml.safe_dump(dict(run.config), sort_keys=False)))
    return join_markup(
        *map(_launch, run.manifest.get("launches", ())), facts_table([*settings, *_manifest(run)]), config
    )


def provenance_of_runs(groups: Sequence[SeedGroup], runs: Sequence[RunFiles], most: int) -> Iterator[Html]:
    """Yield the provenance of the first `most` runs, collapsed, and a table of the groups."""
    for run in runs[:most]:
        yield collapsible(run.name, provenance_section(run))
    if len(runs) > most:
        yield paragraphs(f"For the other {len(runs) - most} runs see their folders.")
    if len(groups) > 1:
        yield element("h3", "Groups")
        yield table(("config", "runs"), [(group.label, ", ".join(run.name for run in group.runs)) for group in groups])


def _launch(launch: Content) -> Html:
    command = code_block(shlex.join(map(str, launch.get("command", ()))))
    changes = ", ".join(map(str, launch.get("changes", ())))
    return join_markup(command, paragraphs(f"Changed: {changes}" if changes else ""))


def describe_hardware(launch: Content) -> str:
    """Describe each kind of machine once: `2 hosts: 8 x NVIDIA H200, driver 580.65, AMD EPYC 9454 (192 cores)`."""
    kinds = Counter(_machine(each) for each in launch.get("hardware", {}).values())
    return "; ".join(f"{count} hosts: {kind}" if count > 1 else kind for kind, count in kinds.items())


def _machine(hardware: Content) -> str:
    names: Counter[str] = Counter(hardware.get("gpus", ()))
    gpus = [f"{count} x {name}" for name, count in names.items()]
    driver = [f"driver {hardware['driver']}"] if hardware.get("driver") else []
    return ", ".join([*gpus, *driver, f"{hardware.get('cpu')} ({hardware.get('cores')} cores)"])


def _manifest(run: RunFiles) -> list[tuple[str, str]]:
    last: dict[str, Any] = (run.manifest.get("launches") or [{}])[-1]
    versions = [f"{name} {value}" for name, value in last.get("versions", {}).items() if value]
    hosts = dict.fromkeys(str(worker["host"]) for worker in run.workers if worker.get("host"))
    facts = {
        "data (SHA-256 of its index)": run.manifest.get("data"),
        "commit": last.get("commit"),
        "uncommitted changes": ", ".join(last.get("uncommitted") or ()),
        "versions": ", ".join(versions),
        "hosts": ", ".join(hosts),
        "hardware": describe_hardware(last),
        "folder": str(run.run.path),
    }
    return [(name, value) for name, value in facts.items() if value]
