"""Options of `fmfsd-tune` alone, in the order of the panels of its help."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fmfsd.typer_app import PANEL_BEFORE, PANEL_HOW, PANEL_WHAT, PANEL_WHERE

SEARCH = "Search"

Config = Annotated[str | None, typer.Argument(help="A preset's name or a YAML file; default: the space's own.")]
Space = Annotated[str | None, typer.Option(rich_help_panel=PANEL_WHAT, help="A file, or the name of a shipped space.")]
SweepDirectory = Annotated[
    Path | None, typer.Option(rich_help_panel=PANEL_WHAT, help="Sweep directory; default: a new one in runs/.")
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="SWEEP_DIR", rich_help_panel=PANEL_WHAT, help="Resume a sweep; also with more --trials or --seeds."
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
        help="Objective such as valid/deepest_top1; with several, the Pareto front.",
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
    typer.Option(rich_help_panel=SEARCH, help="Early stopping of trials; default none."),
]
Seed = Annotated[int | None, typer.Option(min=0, rich_help_panel=SEARCH, help="Seed of the sampler; default 0.")]
Seeds = Annotated[
    int | None, typer.Option(min=1, rich_help_panel=SEARCH, help="Train the best again with this number of new seeds.")
]
Best = Annotated[
    int | None, typer.Option(min=1, rich_help_panel=SEARCH, help="Number of best configs to train again; default 3.")
]

Nodes = Annotated[int, typer.Option("--nodes", "-N", min=1, rich_help_panel=PANEL_WHERE, help="Nodes per trial.")]
Gpus = Annotated[int, typer.Option(min=1, rich_help_panel=PANEL_WHERE, help="Workers per node of a trial.")]
Concurrent = Annotated[
    int | None, typer.Option(min=1, rich_help_panel=PANEL_WHERE, help="Trials at a time; default: as many as fit.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="auto|HOST:PORT", rich_help_panel=PANEL_WHERE, help="An existing Ray cluster; default: start one."
    ),
]
Dashboard = Annotated[
    bool, typer.Option("--dashboard", rich_help_panel=PANEL_WHERE, help="Start Ray's dashboard on loopback.")
]

DiskBudget = Annotated[
    str | None,
    typer.Option(
        metavar="10G", rich_help_panel=PANEL_HOW, help="Disk limit of the sweep: only the best keep checkpoints."
    ),
]
MaxFailures = Annotated[
    int | None, typer.Option(min=0, rich_help_panel=PANEL_HOW, help="Restarts of a failed trial; default 3.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", rich_help_panel=PANEL_BEFORE, help="Show what would be searched and started.")
]
