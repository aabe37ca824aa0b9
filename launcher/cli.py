"""`fmfsd-launch`: parse, call one function, exit code."""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from fmfsd.errors import ConfigError
from fmfsd.locks import choose_method
from launcher import options
from launcher.config import DEFAULT_GRACE_S, DEFAULT_HANG_TIMEOUT_S, DEFAULT_MAX_RESTARTS
from launcher.limits import raise_open_files
from launcher.run_cli import RUN_COMMANDS, meant, run_app

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    os.environ.setdefault("FMFSD_UMASK", f"{os.umask(0o077):03o}")  # for prepared sets, which others may read
    choose_method(os.environ)
    raise_open_files()  # each node agent takes three
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was begun for the check is ended
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first in RUN_COMMANDS:
        run_app()
    elif trouble := meant(first):
        print(trouble, file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    else:
        app()


@app.command()
def launch(
    config: Annotated[str, typer.Argument(help="A preset's name or a YAML file.")] = "cifar100-resnet18",
    overrides: options.Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the config.")] = False,
    run_dir: Annotated[Path | None, typer.Option(readable=False, help="Default: a new one in runs/.")] = None,
    resume: Annotated[Literal["auto", "never"], typer.Option(help="Go on with a run directory that exists.")] = "auto",
    nodes: Annotated[int | None, typer.Option(min=1, help="Node agents; default 1.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Workers a node; default: all visible GPUs, else 1.")] = None,
    device: options.Device = "auto",
    engine: options.Engine = None,
    starter: options.Starter = "torchrun",
    wrap: options.Wrap = None,
    env: options.Env = None,
    grace: options.Grace = DEFAULT_GRACE_S,
    hang_timeout: options.HangTimeout = DEFAULT_HANG_TIMEOUT_S,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="New attempts after failures, counted anew after each checkpoint.")
    ] = DEFAULT_MAX_RESTARTS,
    elastic: Annotated[
        str | None, typer.Option(metavar="MIN:MAX", help="Node agents; go on with fewer when some are lost.")
    ] = None,
    on: Annotated[
        Literal["auto", "local", "ssh", "slurm"],
        typer.Option(help="auto: a Slurm allocation's nodes, else the hosts given, else this machine."),
    ] = "auto",
    hosts: Annotated[str | None, typer.Option(metavar="A,B", help="Machines to reach by ssh, an agent each.")] = None,
    hostfile: Annotated[Path | None, typer.Option(help="The same as lines of `host` or `host slots=N`.")] = None,
    interface: Annotated[str | None, typer.Option(metavar="IF", help="Network interface that nodes talk over.")] = None,
    preflight: Annotated[
        bool | None,
        typer.Option("--preflight/--no-preflight", help="Try nodes and network first; default: with several nodes."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check everything, start nothing.")] = False,
    check_data: Annotated[bool, typer.Option("--check-data", help="Verify checksums, however large the set.")] = False,
    doctor: Annotated[bool, typer.Option("--doctor", help="What there is to run on, and what to mend.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every command and variable, start nothing.")
    ] = False,
    drill: Annotated[
        str | None,
        typer.Option(metavar="FAULTS", help="Do these faults to short runs, and show what became of them; all: all."),
    ] = None,
    drill_seed: Annotated[int, typer.Option(help="Decides when, and to which process.")] = 0,
    verify_invariance: Annotated[
        str | None,
        typer.Option(metavar="N,N...", help="Train some steps by each number of workers, and show how alike they are."),
    ] = None,
    verify_steps: Annotated[int, typer.Option(min=1, help="So many steps.")] = 5,
    profile: Annotated[
        bool, typer.Option("--profile", help="Train some steps, show where they go, and write the profiler's traces.")
    ] = False,
    profile_steps: Annotated[int, typer.Option(min=1, help="So many are timed, and as many taken apart.")] = 10,
    partition: options.Partition = None,
    account: options.Account = None,
    qos: options.Qos = None,
    time: options.Time = None,
    mem: options.Mem = None,
    cpus_per_gpu: options.CpusPerGpu = None,
    array: options.Array = None,
    sbatch_args: options.SbatchArgs = None,
    srun_args: options.SrunArgs = None,
    wait: options.Wait = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Train: check everything, start a node agent with its workers for each node, watch them to the end.

    `fmfsd-launch stop|status|logs|cancel|resume RUN` acts on a run that exists; --help tells of each.

    Exit codes: 0 done, 1 the run failed, 2 usage or config error, 3 a check failed, 75 stopped on request with a
    checkpoint saved (run again to go on), 130 interrupted twice.
    """
    from fmfsd.config import load_config
    from fmfsd.terminal import errors_shown
    from launcher.config import DrillOptions, InvarianceOptions, LaunchConfig, ProfileOptions, SlurmOptions, node_limits
    from launcher.environment import extra_variables
    from launcher.gathered import Gathered
    from launcher.hosts.ssh import parse_hosts
    from launcher.hosts.wrapper import parse_wrap
    from launcher.launch import Request, launch_run, print_schema
    from launcher.slurm.batch import slurm_options
    from launcher.where import settle

    with errors_shown(debug=debug):
        if schema:
            print_schema()
            return
        changes = (*([f"engine.name={engine}"] if engine else []), *(overrides or ()))
        words = {"partition": partition, "account": account, "qos": qos, "time": time, "mem": mem, "array": array}
        data_root, found = os.environ.get("FMFSD_DATA") or "data", Gathered()
        most, fewest = found.of(partial(node_limits, nodes, elastic), (nodes, None))
        more, steps = sbatch_args or (), srun_args or ()
        slurm = partial(slurm_options, words, more=more, srun=steps, cpus_per_gpu=cpus_per_gpu, wait=wait)
        asked = LaunchConfig(
            gpus=gpus,
            device=device,
            run_dir=run_dir,
            resume=resume,
            grace_s=grace,
            hang_timeout_s=hang_timeout,
            max_restarts=max_restarts,
            min_nodes=fewest,
            on=on,
            hosts=found.of(lambda: parse_hosts(hosts, hostfile), ()),
            interface=interface,
            preflight=preflight,
            starter=starter,
            wrap=found.of(lambda: parse_wrap(wrap), ()),
            extra_env=found.of(lambda: extra_variables(env or [], os.environ), {}),
            slurm=found.of(slurm, SlurmOptions()),
        )
        drills = found.of(lambda: DrillOptions.parse(drill, drill_seed), None)
        elsewhere = on if on in ("ssh", "slurm") else None
        beside = {"--drill": drill, "--gpus": gpus, "--elastic": elastic, "--array": array, "--on": elsewhere}
        with_hosts = {**beside, "--hosts": hosts, "--hostfile": hostfile, "--profile": profile}
        invariance = found.of(lambda: InvarianceOptions.parse(verify_invariance, verify_steps, beside=with_hosts), None)
        alone = {"--drill": drill, "--array": array, "--elastic": elastic}
        profiled = found.of(lambda: ProfileOptions.parse(asked=profile, steps=profile_steps, beside=alone), None)
        settled = found.of(lambda: settle(asked, nodes=most, environment=os.environ), None)
        if settled is None or found.problems:
            found.of(lambda: load_config(config, changes, data_root=data_root), None)
            raise ConfigError(found.problems)
        site, placed = settled
        if doctor:
            from launcher.doctor import examine

            raise typer.Exit(examine(site, environment=os.environ, cwd=os.getcwd(), as_json=as_json))
        request = Request(
            config=config,
            overrides=changes,
            launch=placed,
            site=site,
            stop_after="check" if check else "plan" if dry_run else "run",
            as_json=as_json,
            data_root=data_root,
            drill=drills,
            invariance=invariance,
            profile=profiled,
            checks_all_data=check_data,
        )
        raise typer.Exit(launch_run(request, environment=os.environ, cwd=os.getcwd(), argv=sys.argv))
