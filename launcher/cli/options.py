"""The options of `fmfsd-launch` and `fmfsd-tune`, by the panels of their help."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from fmfsd.command_line import BEFORE, HOW, SLURM, WHAT, WHERE
from fmfsd.config.load import preset_names

DIAGNOSTICS = "Diagnostics"
RUN_COMMANDS = ("stop", "status", "logs", "cancel", "resume")
"""First words that are no preset: what is done to a run that exists."""


def _first_words(begun: str) -> Sequence[str]:
    return [word for word in (*preset_names(), *RUN_COMMANDS) if word.startswith(begun)]


Config = Annotated[str, typer.Argument(help="A preset's name or a YAML file.", autocompletion=_first_words)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", rich_help_panel=WHAT, help="Change a value of the config; may be repeated."),
]
Schema = Annotated[bool, typer.Option("--schema", rich_help_panel=WHAT, help="Print the JSON schema of the config.")]
RunDirectory = Annotated[
    Path | None, typer.Option(readable=False, rich_help_panel=WHAT, help="Default: a new one in runs/.")
]
Resume = Annotated[
    Literal["auto", "never"],
    typer.Option(rich_help_panel=WHAT, help="Whether to go on with a run directory that exists."),
]

On = Annotated[
    Literal["auto", "local", "ssh", "slurm"],
    typer.Option(
        rich_help_panel=WHERE, help="auto: a Slurm allocation's nodes, else the hosts given, else this machine."
    ),
]
Nodes = Annotated[
    int | None, typer.Option("--nodes", "-N", min=1, rich_help_panel=WHERE, help="Node agents; default 1.")
]
Gpus = Annotated[
    int | None, typer.Option(min=1, rich_help_panel=WHERE, help="Workers a node; default: all visible GPUs, else 1.")
]
Device = Annotated[Literal["auto", "cuda", "cpu"], typer.Option(rich_help_panel=WHERE, help="What workers compute on.")]
Hosts = Annotated[
    str | None, typer.Option(metavar="A,B", rich_help_panel=WHERE, help="Machines to reach by ssh, an agent each.")
]
Hostfile = Annotated[
    Path | None, typer.Option(rich_help_panel=WHERE, help="The same as lines of `host` or `host slots=N`.")
]
Interface = Annotated[
    str | None, typer.Option(metavar="IF", rich_help_panel=WHERE, help="Network interface that nodes talk over.")
]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="NAME[=VALUE]", rich_help_panel=WHERE, help="A variable for the workers."),
]

Engine = Annotated[
    Literal["torch", "deepspeed"] | None,
    typer.Option(rich_help_panel=HOW, help="Who owns the optimizer step; as --set engine.name=..."),
]
Starter = Annotated[
    Literal["torchrun", "deepspeed", "direct"],
    typer.Option(
        rich_help_panel=HOW,
        help="What starts a node's workers: torchrun, DeepSpeed's launcher, or our agent itself (direct).",
    ),
]
Wrap = Annotated[
    str | None,
    typer.Option(
        metavar="CMD",
        rich_help_panel=HOW,
        help="Before the agent on every node, as in 'apptainer exec --nv image.sif' or numactl.",
    ),
]
MaxRestarts = Annotated[
    int,
    typer.Option(min=0, rich_help_panel=HOW, help="New attempts after failures, counted anew after each checkpoint."),
]
Elastic = Annotated[
    str | None,
    typer.Option(metavar="MIN:MAX", rich_help_panel=HOW, help="Node agents; go on with fewer when some are lost."),
]
Grace = Annotated[
    float,
    typer.Option(min=1, max=86_400, rich_help_panel=HOW, help="Seconds from a stop request to the end by force."),
]
HangTimeout = Annotated[
    float,
    typer.Option(
        min=5, max=86_400, rich_help_panel=HOW, help="Seconds without a sign of progress until a worker is ended."
    ),
]

Check = Annotated[bool, typer.Option("--check", rich_help_panel=BEFORE, help="Check everything, start nothing.")]
CheckData = Annotated[
    bool, typer.Option("--check-data", rich_help_panel=BEFORE, help="Verify checksums, however large the set.")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", rich_help_panel=BEFORE, help="Show what would be started, start nothing."),
]
Preflight = Annotated[
    bool | None,
    typer.Option(
        "--preflight/--no-preflight",
        rich_help_panel=BEFORE,
        help="Test nodes and network first; default: with several nodes.",
    ),
]

Doctor = Annotated[
    bool, typer.Option("--doctor", rich_help_panel=DIAGNOSTICS, help="What there is to run on, and what to fix.")
]
Drill = Annotated[
    str | None,
    typer.Option(
        metavar="FAULTS", rich_help_panel=DIAGNOSTICS, help="Inject faults into short runs, show the results; all: all."
    ),
]
DrillSeed = Annotated[
    int, typer.Option(rich_help_panel=DIAGNOSTICS, help="Decides when a fault happens, and to which process.")
]
VerifyInvariance = Annotated[
    str | None,
    typer.Option(
        "--verify-invariance",
        metavar="N,N...",
        rich_help_panel=DIAGNOSTICS,
        help="Train some steps with each number of workers, and compare the results.",
    ),
]
VerifySteps = Annotated[int, typer.Option(min=1, rich_help_panel=DIAGNOSTICS, help="How many steps.")]
Profile = Annotated[
    bool,
    typer.Option(
        "--profile", rich_help_panel=DIAGNOSTICS, help="Time the parts of a few steps, write the profiler's traces."
    ),
]
ProfileSteps = Annotated[
    int, typer.Option(min=1, rich_help_panel=DIAGNOSTICS, help="How many are timed, and as many profiled.")
]

Partition = Annotated[
    str | None, typer.Option("--partition", "-p", rich_help_panel=SLURM, help="Partition of the batch job.")
]
Account = Annotated[str | None, typer.Option("--account", "-A", rich_help_panel=SLURM, help="Account that is charged.")]
Qos = Annotated[str | None, typer.Option(rich_help_panel=SLURM, help="Quality of service.")]
Time = Annotated[
    str | None,
    typer.Option(
        "--time", "-t", rich_help_panel=SLURM, help="Limit, as in 4:00:00; a run that needs more goes on in the next."
    ),
]
Mem = Annotated[str | None, typer.Option(rich_help_panel=SLURM, help="Memory a node, as in 64G.")]
CpusPerGpu = Annotated[int | None, typer.Option(min=1, rich_help_panel=SLURM, help="Cores a worker; default 2.")]
Array = Annotated[
    str | None,
    typer.Option(metavar="SEEDS", rich_help_panel=SLURM, help="As in 0-4: a run for each seed, in RUN_DIR/seed-N."),
]
SbatchArgs = Annotated[
    list[str] | None,
    typer.Option("--sbatch-arg", metavar="KEY=VALUE", rich_help_panel=SLURM, help="Any other option of sbatch."),
]
SrunArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--srun-arg", metavar="KEY=VALUE", rich_help_panel=SLURM, help="An option of srun for each node's agent."
    ),
]
Wait = Annotated[bool, typer.Option("--wait", rich_help_panel=SLURM, help="Follow the job until it has ended.")]
