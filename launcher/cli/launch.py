"""`fmfsd-launch`: parse, call one function, exit code."""

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial

import typer

from fmfsd.command_line import App, Debug, GatheringCommand, Json, Version, wrong_values
from fmfsd.errors import ConfigError
from launcher.cli import options
from launcher.cli.manage import meant, run_app
from launcher.cli.options import RUN_COMMANDS
from launcher.config.launch_config import DEFAULT_GRACE_S, DEFAULT_HANG_TIMEOUT_S, DEFAULT_MAX_RESTARTS
from launcher.config.process_limits import prepare_process

app = App()


def main() -> None:
    prepare_process(os.environ)
    first = first_word(sys.argv, os.environ)
    if first in RUN_COMMANDS:
        run_app()
    elif trouble := meant(first):
        print(trouble, file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    else:
        app()


def first_word(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Behind the program's name; while a shell completes a command line, of that."""
    words = environment.get("_TYPER_COMPLETE_ARGS", "").split() or argv
    return words[1] if len(words) > 1 else ""


@app.command(cls=GatheringCommand)
def launch(
    context: typer.Context,
    config: options.Config = "cifar100-resnet18",
    overrides: options.Overrides = None,
    schema: options.Schema = False,
    run_dir: options.RunDirectory = None,
    resume: options.Resume = "auto",
    on: options.On = "auto",
    nodes: options.Nodes = None,
    gpus: options.Gpus = None,
    device: options.Device = "auto",
    hosts: options.Hosts = None,
    hostfile: options.Hostfile = None,
    interface: options.Interface = None,
    env: options.Env = None,
    engine: options.Engine = None,
    starter: options.Starter = "torchrun",
    wrap: options.Wrap = None,
    max_restarts: options.MaxRestarts = DEFAULT_MAX_RESTARTS,
    elastic: options.Elastic = None,
    grace: options.Grace = DEFAULT_GRACE_S,
    hang_timeout: options.HangTimeout = DEFAULT_HANG_TIMEOUT_S,
    check: options.Check = False,
    check_data: options.CheckData = False,
    dry_run: options.DryRun = False,
    preflight: options.Preflight = None,
    doctor: options.Doctor = False,
    drill: options.Drill = None,
    drill_seed: options.DrillSeed = 0,
    verify_invariance: options.VerifyInvariance = None,
    verify_steps: options.VerifySteps = 5,
    profile: options.Profile = False,
    profile_steps: options.ProfileSteps = 10,
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
    as_json: Json = False,
    debug: Debug = False,
    _version: Version = False,
) -> None:
    """Train: check everything, start a node agent with its workers for each node, watch them to the end.

    `fmfsd-launch stop|status|logs|cancel|resume RUN` acts on a run that exists; --help tells of each.

    Exit codes: 0 done, 1 the run failed, 2 command line or config, 3 a check failed (2 and 3: nothing was started), 75
    stopped on request with a checkpoint saved (run again to go on), 130 interrupted at once (Ctrl-C twice, or before
    anything was started), 143 SIGTERM before anything was started.
    """
    from fmfsd.terminal import errors_shown
    from launcher.config.environment import extra_variables
    from launcher.config.error_collector import Gathered
    from launcher.config.launch_config import (
        DrillOptions,
        InvarianceOptions,
        LaunchConfig,
        ProfileOptions,
        SlurmOptions,
        node_limits,
    )
    from launcher.launch import launch_run, print_schema
    from launcher.prepare_launch import Request, problems_without_site
    from launcher.resources.resolve_site import settle
    from launcher.slurm.job_options import slurm_options
    from launcher.transport.ssh import parse_hosts
    from launcher.transport.wrap import parse_wrap

    with errors_shown(debug=debug):
        if schema:
            print_schema()
            return
        changes = (*([f"engine.name={engine}"] if engine else []), *(overrides or ()))
        words = {"partition": partition, "account": account, "qos": qos, "time": time, "mem": mem, "array": array}
        data_root, found = os.environ.get("FMFSD_DATA") or "data", Gathered(wrong_values(context))
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
            also = problems_without_site(config, changes, asked, data_root=data_root, cwd=os.getcwd())
            raise ConfigError([*found.problems, *also])
        site, placed = settled
        if doctor:
            from launcher.diagnostics.doctor import examine

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
