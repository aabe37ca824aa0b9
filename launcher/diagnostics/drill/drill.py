"""A drill: one undisturbed run, the same run again with each fault, and a table of the results."""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from rich.console import Console

from fmfsd.config import RunConfig
from fmfsd.data.shards.index import prepared_set_folder, read_index
from fmfsd.errors import FmfsdError, Problem, RunFailedError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.config.error_collector import collect_all
from launcher.config.launch_config import LaunchConfig
from launcher.diagnostics.drill.faults import FAULTS, Injector, Scene
from launcher.diagnostics.drill.results import Result, checkpoint_bytes, compare_runs, print_json, table
from launcher.diagnostics.short_run import InterruptedByUserError, ShortRun, short_run_dir, shorten
from launcher.launch_request import LaunchRequest, check_request, load_request_config, prepare_command, show_plan
from launcher.plan.launch_plan import LaunchPlan, plan_run
from launcher.supervise.coordinator import start_node_agent
from launcher.supervise.execute_plan import create_console
from launcher.transport.isolation import INTERFACE, CuttableNetwork

MIN_STEPS = 16
TRAINING_S = 6.0
"""Minimum duration of a run: half of it remains after the latest fault, and progress is written twice a second."""
HANG_TIMEOUT_S = 10.0
SLOW_STEPS = 4
"""The hang timeout is at least the time of this number of steps or evaluation batches."""


def run_drill(
    request: LaunchRequest, faults: Sequence[str], seed: int, *, environment: Mapping[str, str], cwd: str
) -> int:
    """Return the exit code: 1 if a fault was not survived or changed the result.

    ConfigError or CheckError before anything is started.
    """
    run = short_run_dir(request, cwd, "drill")
    exists = (
        [] if run.is_unused() else [Problem(str(run.path), "exists, and a drill needs new runs: use another --run-dir")]
    )
    (found,) = collect_all([partial(check_request, request, run, environment, cwd)], other_problems=exists)
    prepare = prepare_command(found.config)
    plan_for = partial(plan_run, request.launch, found.site, environment=environment, cwd=cwd, prepare=prepare)
    if request.stop_after != "run":
        show_plan(request, found, plan_for(run))
        return 0
    drill = Drill(
        faults,
        seed,
        partial(load_request_config, request),
        request.launch,
        run,
        plan_for,
        create_console(as_json=request.as_json),
    )
    return drill.run_to_end(as_json=request.as_json)


class Drill:
    """`config_with(changes)` is the user's config with overrides; `plan_for(run, slots)` plans a run of the launch."""

    def __init__(
        self,
        faults: Sequence[str],
        seed: int,
        config_with: Callable[[Sequence[str]], RunConfig],
        launch: LaunchConfig,
        run: RunDir,
        plan_for: Callable[..., LaunchPlan],
        console: Console,
    ) -> None:
        self._faults, self._seed, self._config_with = faults, seed, config_with
        self._folder, self._plan_for, self._console = run.path, plan_for, console
        self._launch = replace(launch, min_nodes=None)
        self._steps, self._undisturbed = MIN_STEPS, RunDir(self._folder / "undisturbed")
        self._checkpoint_bytes = 0

    def run_to_end(self, *, as_json: bool) -> int:
        """Return the exit code: 1 if a fault was not survived or changed the result."""
        self._print(f"drill: {self._folder}")
        try:
            if not all(map(self._missing, self._faults)):
                self._print("an undisturbed run first")
                self._run_undisturbed()
            results = [self._result(fault) for fault in self._faults]
        except InterruptedByUserError as interruption:
            self._print("the drill was ended")
            return interruption.exit_code
        self._console.print(table(results))
        self._print(f"{self._steps} steps each, a checkpoint every {self._every}, seed {self._seed}")
        self._print(
            "noticed, training again: seconds after the fault; resumed exactly: bitwise equal to the undisturbed run"
        )
        if as_json:
            print_json(results)
        return 0 if all(result.is_good for result in results) else RunFailedError.exit_code

    @property
    def _every(self) -> int:
        return self._steps // 4

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False)

    def _run_undisturbed(self) -> None:
        """Run undisturbed; run again with more steps if the run was too short for a fault to hit it while training."""
        self._execute(self._undisturbed)
        step_s = _seconds_per_step(self._undisturbed)
        slowest_s = max(step_s, self._seconds_per_evaluation_batch())
        self._launch = replace(self._launch, hang_timeout_s=max(HANG_TIMEOUT_S, SLOW_STEPS * slowest_s))
        wanted = 4 * math.ceil(TRAINING_S / step_s / 4)
        if wanted > self._steps:
            self._print(f"\na longer one, as {self._steps} steps take only {self._steps * step_s:.1f} s")
            self._steps, self._undisturbed = wanted, RunDir(self._folder / "undisturbed-longer")
            self._execute(self._undisturbed)
        self._checkpoint_bytes = checkpoint_bytes(self._undisturbed)

    def _missing(self, name: str) -> str:
        """Return what a fault needs and this machine lacks, or an empty string."""
        return FAULTS[name].missing(self._launch, self._checkpoint_bytes)

    def _seconds_per_evaluation_batch(self) -> float:
        config, workers = self._config(), self._plan_for(self._undisturbed).num_workers
        *_, (trained_at, _), (evaluated_at, split) = _record_times(self._undisturbed)
        share = config.train.evaluate_batch * workers / read_index(prepared_set_folder(config.data)).num_samples(split)
        return (evaluated_at - trained_at) * min(1.0, share)

    def _result(self, name: str) -> Result:
        self._print(f"\n{name}")
        if skipped := self._missing(name):
            return Result(name, skipped=skipped)
        try:
            return self._with_fault(name)
        except (FmfsdError, OSError) as error:
            self._print(str(error))
            return Result(name, problem=f"NO: {str(error).splitlines()[0]}")

    def _with_fault(self, name: str) -> Result:
        fault, run = FAULTS[name], RunDir(self._folder / name)
        rng = random.Random(f"{self._seed} {name}")
        scene = Scene(run, rng, self._checkpoint_bytes)
        fault.prepare(scene)
        step = rng.randint(self._every + 1, 2 * self._every)
        injector = Injector(run, partial(fault.inject, scene), step=step)
        stopped_s = None
        if name == "preempt":
            self._execute(run, on_poll=injector.poll, may_stop=True)
            stopped_s = _stop_duration(run)
        self._execute(run, on_poll=injector.poll, network=scene.network)
        if injector.at is None:
            return Result(name, problem="NO: the run ended before the fault")
        noticed_s = injector.noticed_s if stopped_s is None else stopped_s
        if noticed_s is None:
            return Result(name, injector.target, problem="NO: not noticed")
        lost, difference = injector.lost_steps, compare_runs(run, self._undisturbed)
        return Result(name, injector.target, noticed_s, injector.recovered_s, lost, difference)

    def _execute(
        self,
        run: RunDir,
        *,
        on_poll: Callable[[], None] = lambda: None,
        network: CuttableNetwork | None = None,
        may_stop: bool = False,
    ) -> None:
        """Run to the end; only the fault may stop the run, and only with `may_stop`."""
        plan_in = self._plan_for if network is None else self._plan_in_network
        ShortRun(
            self._config(),
            self._launch,
            run,
            partial(plan_in, run),
            self._console,
            on_poll=on_poll,
            start_agent=start_node_agent if network is None else lambda node: network.start_agent(node.node),
        ).run_to_end(may_stop=may_stop)

    def _plan_in_network(self, run: RunDir, slots: tuple[int, ...] | None = None) -> LaunchPlan:
        plan = self._plan_for(run, slots)
        own = {"GLOO_SOCKET_IFNAME": INTERFACE, "NCCL_SOCKET_IFNAME": f"={INTERFACE}"}
        return replace(plan, nodes=tuple(replace(node, env={**node.env, **own}) for node in plan.nodes))

    def _config(self) -> RunConfig:
        steps, every = self._steps, self._every
        return self._config_with(
            [
                *shorten(self._config_with(()), steps),
                f"train.log_every={max(1, steps // MIN_STEPS)} steps",
                "train.deterministic=true",
                f"checkpoint.every_steps={every}",
            ]
        )


def _record_times(run: RunDir) -> list[tuple[float, str]]:
    """Return the time and the split of each metrics record."""
    return [(line["time"], line["split"]) for line in map(json.loads, run.metrics.read_text("utf-8").splitlines())]


def _seconds_per_step(run: RunDir) -> float:
    lines = list(map(json.loads, run.metrics.read_text("utf-8").splitlines()))
    times = [(line["time"], line["step"]) for line in lines if line["split"] == "train"]
    (start, first), (end, last) = times[0], times[-1]
    return float(max(0.001, (end - start) / (last - first)))


def _stop_duration(run: RunDir) -> float | None:
    """Return the seconds from the stop request to the end, or None if no request arrived."""
    stopped_after_s: float | None = read_json(run.attempt(run.last_attempt()))["stopped_after_s"]
    return stopped_after_s
