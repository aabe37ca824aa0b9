"""Options of `fmfsd-launch` that belong together, as types for its command line."""

from typing import Annotated, Literal

import typer

Partition = Annotated[str | None, typer.Option(rich_help_panel="Slurm", help="Partition of the batch job.")]
Account = Annotated[str | None, typer.Option(rich_help_panel="Slurm", help="Account that is charged.")]
Qos = Annotated[str | None, typer.Option(rich_help_panel="Slurm", help="Quality of service.")]
Time = Annotated[
    str | None,
    typer.Option(rich_help_panel="Slurm", help="Limit, as in 4:00:00; a run that needs more goes on in the next."),
]
Mem = Annotated[str | None, typer.Option(rich_help_panel="Slurm", help="Memory a node, as in 64G.")]
CpusPerGpu = Annotated[int | None, typer.Option(min=1, rich_help_panel="Slurm", help="Cores a worker; default 2.")]
Array = Annotated[
    str | None,
    typer.Option(metavar="SEEDS", rich_help_panel="Slurm", help="As in 0-4: a run for each seed, in RUN_DIR/seed-N."),
]
SbatchArgs = Annotated[
    list[str] | None,
    typer.Option("--sbatch-arg", metavar="KEY=VALUE", rich_help_panel="Slurm", help="Any other option of sbatch."),
]
SrunArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--srun-arg", metavar="KEY=VALUE", rich_help_panel="Slurm", help="An option of srun for each node's agent."
    ),
]
Wrap = Annotated[
    str | None,
    typer.Option(
        metavar="CMD", help="Before the agent on every node, as in 'apptainer exec --nv image.sif' or numactl."
    ),
]
Wait = Annotated[bool, typer.Option("--wait", rich_help_panel="Slurm", help="Follow the job until it has ended.")]

Device = Annotated[Literal["auto", "cuda", "cpu"], typer.Option(help="What workers compute on.")]
Env = Annotated[list[str] | None, typer.Option("--env", metavar="NAME[=VALUE]", help="A variable for the workers.")]
Grace = Annotated[float, typer.Option(min=1, max=86_400, help="Seconds from a stop request to the end by force.")]
HangTimeout = Annotated[
    float, typer.Option(min=5, max=86_400, help="Seconds without a sign of progress until a worker is ended.")
]
Engine = Annotated[
    Literal["torch", "deepspeed"] | None, typer.Option(help="Who owns the optimizer step; as --set engine.name=...")
]
Starter = Annotated[
    Literal["torchrun", "deepspeed", "direct"],
    typer.Option(help="What starts a node's workers: torchrun, DeepSpeed's launcher, or our agent itself (direct)."),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a value of the config.")]
