"""`fmfsd-tune`: parse, call one function, exit code."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fmfsd.cache_home import complete_environment
from fmfsd.locks import choose_method
from launcher import options
from launcher.config import DEFAULT_GRACE_S, DEFAULT_HANG_TIMEOUT_S

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    os.environ.setdefault("FMFSD_UMASK", f"{os.umask(0o077):03o}")  # for prepared sets, which others may read
    if note := complete_environment(os.environ):  # Ray's processes need a home
        print(f"warning: {note}", file=sys.stderr)
    choose_method(os.environ)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was begun for the check is ended
    app()


@app.command()
def tune(
    config: Annotated[
        str | None, typer.Argument(help="A preset's name or a YAML file; default: the space's own.")
    ] = None,
    space: Annotated[str | None, typer.Option(help="A space's file, or a shipped one's name.")] = None,
    overrides: options.Overrides = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Different configs to try; default: the space's.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="What is searched for, as valid/deepest_top1; several: their Pareto front."),
    ] = None,
    mode: Annotated[
        list[str] | None, typer.Option(help="max or min, for each --metric; default: max of accuracies, else min.")
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="random, grid, tpe, or another of Optuna's; default: grid of grids, else tpe.")
    ] = None,
    scheduler: Annotated[
        Literal["none", "asha", "median"] | None, typer.Option(help="Which trials are stopped early; default none.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Decides what is drawn; default 0.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of a trial.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="Workers on each of its nodes.")] = 1,
    device: options.Device = "auto",
    concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time; default: as many as fit.")] = None,
    ray_address: Annotated[
        str | None, typer.Option(metavar="auto|HOST:PORT", help="A Ray cluster that is there; default: one of our own.")
    ] = None,
    dashboard: Annotated[bool, typer.Option(help="Ray's dashboard, on loopback.")] = False,
    sweep_dir: Annotated[Path | None, typer.Option(help="Default: a new one in runs/.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="SWEEP_DIR", help="Go on with a sweep; also with more --trials or --seeds.")
    ] = None,
    disk_budget: Annotated[
        str | None, typer.Option(metavar="10G", help="Bound of the whole sweep: only the best keep checkpoints.")
    ] = None,
    max_failures: Annotated[int | None, typer.Option(min=0, help="New attempts of a trial; default 3.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Run the best again with so many seeds each.")] = None,
    best: Annotated[int | None, typer.Option(min=1, help="How many are the best; default 3.")] = None,
    grace: options.Grace = DEFAULT_GRACE_S,
    hang_timeout: options.HangTimeout = DEFAULT_HANG_TIMEOUT_S,
    env: options.Env = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be searched and started.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Search: draw configs from a space, train each as an ordinary run, and show which are best.

    Exit codes: 0 done, 1 the search failed, 2 usage or config error, 3 a check failed (nothing was started), 75 stopped
    on request (--resume goes on), 130 interrupted twice.
    """
    from fmfsd.terminal import errors_shown
    from launcher.config import LaunchConfig
    from launcher.environment import extra_variables
    from launcher.sizes import parse_size
    from launcher.tune.sweep import SweepRequest, run_sweep

    with errors_shown(debug=debug):
        given = {
            "trials": trials,
            "metrics": tuple(metric) if metric else None,
            "modes": tuple(mode) if mode else None,
            "search": search,
            "scheduler": scheduler,
            "seed": seed,
            "concurrent": concurrent,
            "ray_address": ray_address,
            "dashboard": dashboard or None,
            "disk_bytes": parse_size("--disk-budget", disk_budget) if disk_budget else None,
            "max_failures": max_failures,
            "seeds": seeds,
            "best": best,
        }
        launch = LaunchConfig(
            nodes=nodes,
            gpus=gpus,
            device=device,
            grace_s=grace,
            hang_timeout_s=hang_timeout,
            extra_env=extra_variables(env or [], os.environ),
        )
        request = SweepRequest(
            space=space,
            config=config,
            overrides=tuple(overrides or ()),
            given={name: value for name, value in given.items() if value is not None},
            launch=launch,
            sweep_dir=sweep_dir,
            resume=resume,
            stop_after="plan" if dry_run else "run",
            as_json=as_json,
            data_root=os.environ.get("FMFSD_DATA") or "data",
        )
        raise typer.Exit(run_sweep(request, environment=os.environ, cwd=os.getcwd(), argv=sys.argv))
