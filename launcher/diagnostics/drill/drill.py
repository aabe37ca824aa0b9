"""A drill: an undisturbed run, the same run with each fault, and a table of what became of them."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from rich.console import Console

from fmfsd.config import RunConfig
from fmfsd.data.shards.index import read_index, set_folder
from fmfsd.errors import FmfsdError, RunFailedError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.config.launch_config import DrillOptions, LaunchConfig
from launcher.diagnostics.drill.faults import FAULTS, Injector, Scene
from launcher.diagnostics.drill.results import Result, checkpoint_bytes, differences, print_json, table
from launcher.diagnostics.short_run import EndedByUserError, Rehearsal, shortened
from launcher.plan.plan import LaunchPlan
from launcher.supervise.coordinator import start_planned
from launcher.transport.isolation import INTERFACE, CuttableNetwork

FEWEST_STEPS = 16
TRAINING_S = 6.0
"""Long enough for a fault to find the run at work: half of it is left after the latest one, and progress is shown twice
a second."""
HANG_TIMEOUT_S = 10.0
SLOW_STEPS = 4
"""The time for so many steps or evaluation batches is no hang, if that is longer."""


class Drill:
    """`short_of(changes)` is the user's config with changes; `plan_for(run, slots)` plans a run of the launch."""

    def __init__(
        self,
        options: DrillOptions,
        short_of: Callable[[Sequence[str]], RunConfig],
        launch: LaunchConfig,
        run: RunDir,
        plan_for: Callable[..., LaunchPlan],
        console: Console,
    ) -> None:
        self._options, self._short_of, self._folder, self._plan_for = options, short_of, run.path, plan_for
        self._launch, self._console = replace(launch, min_nodes=None), console
        self._steps, self._whole = FEWEST_STEPS, RunDir(self._folder / "undisturbed")
        self._checkpoint_bytes = 0

    def run_to_end(self, *, as_json: bool) -> int:
        """The exit code: 1 if a fault was not survived, or changed the result."""
        self._say(f"drill: {self._folder}")
        try:
            if not all(map(self._lacks, self._options.faults)):
                self._say("an undisturbed run first")
                self._undisturbed()
            results = [self._result(fault) for fault in self._options.faults]
        except EndedByUserError as ended:
            self._say("the drill was ended")
            return ended.exit_code
        self._console.print(table(results))
        self._say(f"{self._steps} steps each, a checkpoint every {self._every}, seed {self._options.seed}")
        self._say("noticed, and at work again: so long after the fault; resumed exactly: bit for bit as undisturbed")
        if as_json:
            print_json(results)
        return 0 if all(result.is_good for result in results) else RunFailedError.exit_code

    @property
    def _every(self) -> int:
        return self._steps // 4

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def _undisturbed(self) -> None:
        """As long as a fault needs to find it at work, for which the first one is the measure."""
        self._execute(self._whole)
        step_s = _seconds_a_step(self._whole)
        slowest_s = max(step_s, self._seconds_an_evaluation_batch())
        self._launch = replace(self._launch, hang_timeout_s=max(HANG_TIMEOUT_S, SLOW_STEPS * slowest_s))
        wanted = 4 * math.ceil(TRAINING_S / step_s / 4)
        if wanted > self._steps:
            self._say(f"\nand a longer one, as {self._steps} steps take just {self._steps * step_s:.1f} s")
            self._steps, self._whole = wanted, RunDir(self._folder / "undisturbed-longer")
            self._execute(self._whole)
        self._checkpoint_bytes = checkpoint_bytes(self._whole)

    def _lacks(self, name: str) -> str:
        """What it takes and is not here, as far as a checkpoint's size is known; empty if it can be done."""
        return FAULTS[name].lacks(self._launch, self._checkpoint_bytes)

    def _seconds_an_evaluation_batch(self) -> float:
        config, workers = self._config(), self._plan_for(self._whole).num_workers
        *_, (trained_at, _), (evaluated_at, split) = _moments(self._whole)
        share = config.train.evaluate_batch * workers / read_index(set_folder(config.data)).samples(split)
        return (evaluated_at - trained_at) * min(1.0, share)

    def _result(self, name: str) -> Result:
        self._say(f"\n{name}")
        if skipped := self._lacks(name):
            return Result(name, skipped=skipped)
        try:
            return self._with_fault(name)
        except (FmfsdError, OSError) as error:
            self._say(str(error))
            return Result(name, problem=f"NO: {str(error).splitlines()[0]}")

    def _with_fault(self, name: str) -> Result:
        fault, run = FAULTS[name], RunDir(self._folder / name)
        chance = random.Random(f"{self._options.seed} {name}")
        scene = Scene(run, chance, self._checkpoint_bytes)
        fault.prepare(scene)
        step = chance.randint(self._every + 1, 2 * self._every)
        injector = Injector(run, partial(fault.harm, scene), step=step)
        stopped_s = None
        if name == "preempt":
            self._execute(run, look=injector.look, may_stop=True)
            stopped_s = _stopped_after(run)
        self._execute(run, look=injector.look, network=scene.network)
        if injector.at is None:
            return Result(name, problem="NO: the run had ended before it could be done")
        noticed_s = injector.noticed_s if stopped_s is None else stopped_s
        if noticed_s is None:
            return Result(name, injector.what, problem="NO: nobody noticed it")
        lost, difference = injector.lost_steps, differences(run, self._whole)
        return Result(name, injector.what, noticed_s, injector.back_s, lost, difference)

    def _execute(
        self,
        run: RunDir,
        *,
        look: Callable[[], None] = lambda: None,
        network: CuttableNetwork | None = None,
        may_stop: bool = False,
    ) -> None:
        """Only the fault itself may stop the run."""
        plan_in = self._plan_for if network is None else self._plan_in_network
        Rehearsal(
            self._config(),
            self._launch,
            run,
            partial(plan_in, run),
            self._console,
            look=look,
            start_agent=start_planned if network is None else lambda node: network.start_agent(node.node),
        ).run_to_end(may_stop=may_stop)

    def _plan_in_network(self, run: RunDir, slots: tuple[int, ...] | None = None) -> LaunchPlan:
        plan = self._plan_for(run, slots)
        own = {"GLOO_SOCKET_IFNAME": INTERFACE, "NCCL_SOCKET_IFNAME": f"={INTERFACE}"}
        return replace(plan, nodes=tuple(replace(node, env={**node.env, **own}) for node in plan.nodes))

    def _config(self) -> RunConfig:
        steps, every = self._steps, self._every
        return self._short_of(
            [
                *shortened(self._short_of(()), steps),
                f"train.log_every={max(1, steps // FEWEST_STEPS)} steps",
                "train.deterministic=true",
                f"checkpoint.every_steps={every}",
            ]
        )


def _moments(run: RunDir) -> list[tuple[float, str]]:
    """When each record was made, and of which split."""
    return [(line["time"], line["split"]) for line in map(json.loads, run.metrics.read_text("utf-8").splitlines())]


def _seconds_a_step(run: RunDir) -> float:
    lines = list(map(json.loads, run.metrics.read_text("utf-8").splitlines()))
    times = [(line["time"], line["step"]) for line in lines if line["split"] == "train"]
    (start, first), (end, last) = times[0], times[-1]
    return float(max(0.001, (end - start) / (last - first)))


def _stopped_after(run: RunDir) -> float | None:
    """None if nobody heard a request."""
    stopped_after_s: float | None = read_json(run.attempt(run.last_attempt()))["stopped_after_s"]
    return stopped_after_s
