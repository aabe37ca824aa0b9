"""The options that only `fmfsd-tune` has, by the panels of its help."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fmfsd.command_line import BEFORE, HOW, WHAT, WHERE

SEARCH = "Search"

Config = Annotated[str | None, typer.Argument(help="A preset's name or a YAML file; default: the space's own.")]
Space = Annotated[str | None, typer.Option(rich_help_panel=WHAT, help="A space's file, or a shipped one's name.")]
SweepDirectory = Annotated[Path | None, typer.Option(rich_help_panel=WHAT, help="Default: a new one in runs/.")]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="SWEEP_DIR", rich_help_panel=WHAT, help="Go on with a sweep; also with more --trials or --seeds."
    ),
]

Trials = Annotated[
    int | None, typer.Option(min=1, rich_help_panel=SEARCH, help="Different configs to try; default: the space's.")
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        rich_help_panel=SEARCH,
        help="What is searched for, as valid/deepest_top1; several: their Pareto front.",
    ),
]
Modes = Annotated[
    list[str] | None,
    typer.Option(
        "--mode", rich_help_panel=SEARCH, help="max or min, for each --metric; default: max of accuracies, else min."
    ),
]
Algorithm = Annotated[
    str | None,
    typer.Option(
        "--search",
        rich_help_panel=SEARCH,
        help="random, grid, tpe, or another of Optuna's; default: grid of grids, else tpe.",
    ),
]
Scheduler = Annotated[
    Literal["none", "asha", "median"] | None,
    typer.Option(rich_help_panel=SEARCH, help="Which trials are stopped early; default none."),
]
Seed = Annotated[int | None, typer.Option(min=0, rich_help_panel=SEARCH, help="Decides what is drawn; default 0.")]
Seeds = Annotated[
    int | None, typer.Option(min=1, rich_help_panel=SEARCH, help="Run the best again with so many seeds each.")
]
Best = Annotated[int | None, typer.Option(min=1, rich_help_panel=SEARCH, help="How many are the best; default 3.")]

Nodes = Annotated[int, typer.Option("--nodes", "-N", min=1, rich_help_panel=WHERE, help="Nodes of a trial.")]
Gpus = Annotated[int, typer.Option(min=1, rich_help_panel=WHERE, help="Workers on each of its nodes.")]
Concurrent = Annotated[
    int | None, typer.Option(min=1, rich_help_panel=WHERE, help="Trials at a time; default: as many as fit.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="auto|HOST:PORT", rich_help_panel=WHERE, help="A Ray cluster that is there; default: one of our own."
    ),
]
Dashboard = Annotated[bool, typer.Option("--dashboard", rich_help_panel=WHERE, help="Ray's dashboard, on loopback.")]

DiskBudget = Annotated[
    str | None,
    typer.Option(metavar="10G", rich_help_panel=HOW, help="Bound of the whole sweep: only the best keep checkpoints."),
]
MaxFailures = Annotated[
    int | None, typer.Option(min=0, rich_help_panel=HOW, help="New attempts of a trial; default 3.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", rich_help_panel=BEFORE, help="Show what would be searched and started.")
]
