"""Command line of `fmfsd`: each command parses its options, calls one function and returns its exit code."""

import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from fmfsd.distributed.world import World
from fmfsd.run.run_dir import RunDir
from fmfsd.system.cache_dir import complete_environment
from fmfsd.system.cpu_count import usable_cores
from fmfsd.system.file_locks import choose_lock_method
from fmfsd.terminal import exit_on_error, show_progress
from fmfsd.typer_app import App, Debug, Json, Version

app = App(
    help="Feature map fusion self-distillation: workers, data sets, costs of a config, evaluation, export and reports.",
    no_args_is_help=True,
)
data_app = App(help="Prepare and verify data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

EVALUATION_TIMEOUT_S = 3600.0
"""Timeout of collectives: generous, because workers evaluate unequal parts on unequal devices; if a worker fails, its
launcher (torchrun) ends the others anyway."""


def main() -> None:
    if umask := os.environ.get("FMFSD_UMASK"):  # the user's umask; the launcher's own denies access to other users
        os.umask(int(umask, 8))
    if (cores := usable_cores()) < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))  # torch does not consider CPU quotas
    if (note := complete_environment(os.environ)) and sys.argv[1:2] != ["probe"]:  # the caller of `probe` reports it
        print(note, file=sys.stderr)
    choose_lock_method(os.environ)
    app()


@app.callback()
def global_options(_version: Version = False) -> None:
    """Parse the options before a command."""


@app.command()
def train(
    run_dir: Annotated[Path, typer.Argument(help="A run directory with its config.yaml.")],
    device: Annotated[Literal["auto", "cuda", "cpu"], typer.Option(help="Device to compute on.")] = "auto",
) -> None:
    """Run one worker of a run. Environment variables set its rank (torchrun, DeepSpeed, srun or you set them)."""
    from fmfsd.worker import WorkerSettings, run_worker

    with exit_on_error(debug=False):
        if (gpus := os.environ.get("FMFSD_VISIBLE_GPUS")) is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # DeepSpeed's launcher sets it to 0,1,... of the whole machine
        raise typer.Exit(run_worker(run_dir.absolute(), device, WorkerSettings.from_environment(os.environ)))


@app.command()
def probe(
    config: Annotated[str, typer.Argument(help="A preset's name or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a value of the config.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of workers that share the batch and the data.")] = 1,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Device of each worker.")] = "cpu",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the costs of a config: shapes, parameters, multiply-adds and memory per worker. Trains nothing."""
    import json

    from fmfsd.config import RunConfig, load_config
    from fmfsd.cost.cache import estimate_cache_dir, parse_estimate, read_or_estimate
    from fmfsd.cost.cost_report import CostEstimate, Device

    def measure(run_config: RunConfig, workers: int, device: Device) -> CostEstimate:
        from fmfsd.cost.measure.estimate import estimate_cost

        return estimate_cost(run_config, workers=workers, device=device)

    with exit_on_error(debug=debug):
        costs = read_or_estimate(
            measure, load_config(config, overrides or ()), workers, device, estimate_cache_dir(os.environ)
        )
        print(json.dumps(costs, indent=2) if as_json else parse_estimate(costs).render(sys.stdout))


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="A run with a checkpoint; the newest one is evaluated.")],
    split: Annotated[
        str, typer.Option(help="Split of the run's data: test, train, or valid if the run has a validation split.")
    ] = "test",
    exit_thresholds: Annotated[
        list[str] | None,
        typer.Option(
            metavar="P,P,...", help="Exit at the first head whose confidence reaches its threshold; may be repeated."
        ),
    ] = None,
    early_exits: Annotated[
        bool, typer.Option("--early-exits/--no-early-exits", help="Measure the savings of early exits.")
    ] = True,
    exit_target: Annotated[
        str | None,
        typer.Option(metavar="accuracy=POINTS", help="Find thresholds on the validation split, as in accuracy=-0.2."),
    ] = None,
    mirrored: Annotated[
        bool, typer.Option("--mirrored", help="Also evaluate each image averaged with its mirror image.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Other data: a prepared set, official CIFAR files or image folders; the run is not changed."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the results to this file, as JSON.")
    ] = None,
    device: Annotated[Literal["auto", "cuda", "cpu"], typer.Option(help="Device to compute on.")] = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate a run's newest checkpoint: each head, the ensemble, and early exits with their savings.

    Several workers can share the samples: torchrun --nproc-per-node 2 -m fmfsd evaluate RUN_DIR.
    """
    from rich.console import Console

    with exit_on_error(debug=debug):
        world, run = World.from_environment(os.environ), RunDir(run_dir.absolute())
    with exit_on_error(debug=debug), show_progress(Console(stderr=True, quiet=not world.is_main)) as report:
        from fmfsd.distributed.process_group import join_process_group
        from fmfsd.evaluation.evaluate_run import EvaluateOptions, evaluate_run
        from fmfsd.evaluation.output import show_and_write
        from fmfsd.training.trainer import choose_device

        request = EvaluateOptions(split, exit_thresholds or (), exit_target, early_exits, mirrored, data)
        torch_device = choose_device(device, world)
        with join_process_group(world, torch_device, timeout_s=EVALUATION_TIMEOUT_S) as comms:
            results = evaluate_run(run, request, torch_device, comms, report)
    if world.is_main:
        with exit_on_error(debug=debug):
            show_and_write(results, run=run if data is None else None, out=out, as_json=as_json)


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="A run with a checkpoint; the newest one is exported.")],
    form: Annotated[
        Literal["safetensors", "onnx", "torch"],
        typer.Option("--format", help="File format: for fmfsd.load, for ONNX runtimes, or for torch.export.load."),
    ],
    head: Annotated[
        str,
        typer.Option(
            help="deepest, branchN, fused, side, ensemble or early-exit. A single head is exported with only the "
            "layers that it needs. early-exit: images exit at the first confident head; as onnx or torch all heads are "
            "computed and the first confident one is returned, which saves no time."
        ),
    ] = "deepest",
    exit_thresholds: Annotated[
        str | None,
        typer.Option(
            metavar="P,P,...", help="Confidence thresholds of early exits (0.9): one per head, or one for all."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write. Unset: export/HEAD.* in the run.")] = None,
    debug: Debug = False,
) -> None:
    """Export the layers that a head needs as one file, and verify it against the run on its test images.

    The exported network takes float images in [0, 1] and normalizes them itself. Needs the run's prepared set.
    """
    with exit_on_error(debug=debug):
        from fmfsd.export.write import export as write_export

        print(write_export(RunDir(run_dir.absolute()), form, head, exit_thresholds, out and out.absolute()))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Runs, or one sweep.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output file (default: report.html in the folder; for several runs, in the working directory)."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a self-contained HTML page of a run, of several runs side by side, or of a sweep, finished or not."""
    from fmfsd.report.write import write_report

    with exit_on_error(debug=debug):
        print(write_report(folders, out))


@app.command()
def watch(
    target: Annotated[str, typer.Argument(help="The folder of a run or of a search, or the id of a Slurm job.")],
    once: Annotated[bool, typer.Option("--once", help="Show the current state once and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output, one JSON object per line.")] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="S", help="Refresh interval in seconds.")] = 1.0,
    debug: Debug = False,
) -> None:
    """Show all workers of a run live, by reading files only; Ctrl-C ends the live view, not the run."""
    from rich.console import Console

    from fmfsd.monitor.find_run import resolve_target
    from fmfsd.monitor.live import show_once
    from fmfsd.monitor.live import watch as watch_live

    with exit_on_error(debug=debug), suppress(KeyboardInterrupt):
        folder = resolve_target(target, Path.cwd())
        if once:
            show_once(folder, Console(), as_json=as_json)
        else:
            watch_live(folder, Console(), as_json=as_json, every_s=every)


@app.command()
def diff(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR RUN_DIR...", help="Two runs or more.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare runs: config, software, commit, hardware, data and final metrics; differences come first."""
    from fmfsd.errors import ConfigError
    from fmfsd.report.differences import print_differences_json, show_differences

    with exit_on_error(debug=debug):
        if len(runs) < 2:
            raise ConfigError(f"{runs[0]}: only one run, expected two or more to compare")
        print_differences_json(runs) if as_json else show_differences(runs)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A run with a trace (FMFSD_TRACE=1) that logged every step.")],
    others: Annotated[list[Path], typer.Argument(help="Runs of the same steps.")],
    out: Annotated[Path, typer.Option(help="Output file for the largest differences, as JSON.")],
    debug: Debug = False,
) -> None:
    """Measure how far runs deviate from the first one: losses, gradients, samples of each step, and final weights."""
    from fmfsd.training.compare_traces import write_comparisons

    with exit_on_error(debug=debug):
        write_comparisons(out, first, others)


@data_app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="cifar10, cifar100, synthetic10, synthetic100 or folder.")],
    out: Annotated[Path, typer.Option(help="Folder of prepared sets; the new set becomes a subfolder.")],
    source: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the official files, archive or Parquet files (default: --out), or with train/CLASS/."
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the network's input in pixels: 32, 64 or 224 (folder only).")] = 32,
    shards: Annotated[int, typer.Option(help="Number of logical shards.")] = 64,
    valid: Annotated[
        int, typer.Option(help="Training samples held out for validation, the same number of each class.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed of the validation split.")] = 0,
    skip_damaged: Annotated[
        bool,
        typer.Option("--skip-damaged", help="Skip images that can't be read (folder only) and report their number."),
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Download the official archive if it is missing.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Split a data set into shards. Safe to run in several processes at once; never overwrites files."""
    from rich.console import Console

    from fmfsd.config.load import load_data_config
    from fmfsd.data.prepare import prepare as prepare_set

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that an incomplete set is removed
    with exit_on_error(debug=debug), show_progress(Console(stderr=True)) as report:
        data = load_data_config(name=name, root=str(out.absolute()), size=size, shards=shards, valid=valid)
        index = prepare_set(data, source=source, fetch=download, seed=seed, skip_damaged=skip_damaged, report=report)
        print(f"{index.folder}: {index.describe()}")


@data_app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A prepared set, or a folder of them.")], debug: Debug = False
) -> None:
    """Verify all checksums, counts and labels of prepared sets."""
    from fmfsd.data.shards.verify import verify_sets

    with exit_on_error(debug=debug):
        for index in verify_sets(folder):
            print(f"{index.folder}: intact; {index.describe()}")
