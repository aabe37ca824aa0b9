"""Options of `fmfsd-launch` and `fmfsd-tune`, in the order of the panels of their help."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from fmfsd.config.load import preset_names
from fmfsd.typer_app import PANEL_BEFORE, PANEL_HOW, PANEL_SLURM, PANEL_WHAT, PANEL_WHERE

COMMANDS = ("stop", "status", "logs", "cancel", "resume", "doctor", "drill", "verify", "profile")
"""Subcommands of `fmfsd-launch`; no preset has such a name."""


def complete_config(prefix: str) -> Sequence[str]:
    return [name for name in preset_names() if name.startswith(prefix)]


def complete_first_argument(prefix: str) -> Sequence[str]:
    return [name for name in (*preset_names(), *COMMANDS) if name.startswith(prefix)]


Config = Annotated[str, typer.Argument(help="A preset's name or a YAML file.", autocompletion=complete_first_argument)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B=C", rich_help_panel=PANEL_WHAT, help="Change a value of the config; may be repeated."
    ),
]
Schema = Annotated[
    bool, typer.Option("--schema", rich_help_panel=PANEL_WHAT, help="Print the JSON schema of the config.")
]
RunDirectory = Annotated[
    Path | None,
    typer.Option(readable=False, rich_help_panel=PANEL_WHAT, help="Run directory; default: a new one in runs/."),
]
Resume = Annotated[
    Literal["auto", "never"],
    typer.Option(rich_help_panel=PANEL_WHAT, help="auto resumes the run in an existing run directory; never refuses."),
]

On = Annotated[
    Literal["auto", "local", "ssh", "slurm"],
    typer.Option(
        rich_help_panel=PANEL_WHERE, help="auto: the nodes of a Slurm allocation, else --hosts, else this machine."
    ),
]
OnNow = Annotated[
    Literal["auto", "local", "ssh"],
    typer.Option(
        rich_help_panel=PANEL_WHERE, help="auto: the nodes of a Slurm allocation, else --hosts, else this machine."
    ),
]
Nodes = Annotated[
    int | None,
    typer.Option("--nodes", "-N", min=1, rich_help_panel=PANEL_WHERE, help="Number of nodes; default 1, or all hosts."),
]
Gpus = Annotated[
    int | None,
    typer.Option(min=1, rich_help_panel=PANEL_WHERE, help="Workers per node; default: all visible GPUs, else 1."),
]
Device = Annotated[
    Literal["auto", "cuda", "cpu"], typer.Option(rich_help_panel=PANEL_WHERE, help="Device of the workers.")
]
Hosts = Annotated[
    str | None, typer.Option(metavar="A,B", rich_help_panel=PANEL_WHERE, help="Hosts to reach by ssh, one node each.")
]
Hostfile = Annotated[
    Path | None, typer.Option(rich_help_panel=PANEL_WHERE, help="Hosts in a file with lines `host` or `host slots=N`.")
]
Interface = Annotated[
    str | None,
    typer.Option(metavar="IF", rich_help_panel=PANEL_WHERE, help="Network interface for communication between nodes."),
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        metavar="NAME[=VALUE]",
        rich_help_panel=PANEL_WHERE,
        help="Set an environment variable of the workers; may be repeated.",
    ),
]

Engine = Annotated[
    Literal["torch", "deepspeed"] | None,
    typer.Option(rich_help_panel=PANEL_HOW, help="Training engine; short for --set engine.name=..."),
]
Starter = Annotated[
    Literal["torchrun", "deepspeed", "direct"],
    typer.Option(
        rich_help_panel=PANEL_HOW,
        help="Starts the workers of a node: torchrun, DeepSpeed's launcher, or the node agent itself (direct).",
    ),
]
Wrap = Annotated[
    str | None,
    typer.Option(
        metavar="CMD",
        rich_help_panel=PANEL_HOW,
        help="Command in front of the agent on every node, such as 'apptainer exec --nv image.sif' or numactl.",
    ),
]
MaxRestarts = Annotated[
    int,
    typer.Option(
        min=0, rich_help_panel=PANEL_HOW, help="Restarts after failures; the count starts again after each checkpoint."
    ),
]
Elastic = Annotated[
    str | None,
    typer.Option(
        metavar="MIN:MAX", rich_help_panel=PANEL_HOW, help="Number of nodes; continue with fewer when nodes are lost."
    ),
]
Grace = Annotated[
    float,
    typer.Option(
        min=1, max=86_400, rich_help_panel=PANEL_HOW, help="Seconds from a stop request until processes are killed."
    ),
]
HangTimeout = Annotated[
    float,
    typer.Option(
        min=5, max=86_400, rich_help_panel=PANEL_HOW, help="Seconds without progress until a worker counts as hung."
    ),
]

Check = Annotated[bool, typer.Option("--check", rich_help_panel=PANEL_BEFORE, help="Run all checks, start nothing.")]
CheckData = Annotated[
    bool,
    typer.Option("--check-data", rich_help_panel=PANEL_BEFORE, help="Verify the checksums of data sets of any size."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", rich_help_panel=PANEL_BEFORE, help="Show what would be started, start nothing."),
]
Preflight = Annotated[
    bool | None,
    typer.Option(
        "--preflight/--no-preflight",
        rich_help_panel=PANEL_BEFORE,
        help="Test nodes and network first; default: with several nodes.",
    ),
]

Partition = Annotated[
    str | None, typer.Option("--partition", "-p", rich_help_panel=PANEL_SLURM, help="Partition of the batch job.")
]
Account = Annotated[str | None, typer.Option("--account", "-A", rich_help_panel=PANEL_SLURM, help="Account to charge.")]
Qos = Annotated[str | None, typer.Option(rich_help_panel=PANEL_SLURM, help="Quality of service.")]
Time = Annotated[
    str | None,
    typer.Option(
        "--time",
        "-t",
        rich_help_panel=PANEL_SLURM,
        help="Time limit such as 4:00:00; a longer run is requeued and resumed.",
    ),
]
Mem = Annotated[str | None, typer.Option(rich_help_panel=PANEL_SLURM, help="Memory per node, such as 64G.")]
CpusPerGpu = Annotated[
    int | None, typer.Option(min=1, rich_help_panel=PANEL_SLURM, help="CPU cores per worker; default 2.")
]
Array = Annotated[
    str | None,
    typer.Option(
        metavar="SEEDS", rich_help_panel=PANEL_SLURM, help="Seeds such as 0-4: one run per seed, in RUN_DIR/seed-N."
    ),
]
SbatchArgs = Annotated[
    list[str] | None,
    typer.Option("--sbatch-arg", metavar="KEY=VALUE", rich_help_panel=PANEL_SLURM, help="Further option of sbatch."),
]
SrunArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--srun-arg",
        metavar="KEY=VALUE",
        rich_help_panel=PANEL_SLURM,
        help="Further option of srun for the node agents.",
    ),
]
Wait = Annotated[
    bool, typer.Option("--wait", rich_help_panel=PANEL_SLURM, help="Wait for the end of the job and show its logs.")
]
