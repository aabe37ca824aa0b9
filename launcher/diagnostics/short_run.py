"""A run that is made to be looked at, in a folder of its own: for drills and comparisons."""

from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console

from fmfsd.config import RunConfig
from fmfsd.run.run_dir import RunDir
from launcher.config.launch_config import LaunchConfig
from launcher.plan.plan import LaunchPlan, NodePlan
from launcher.supervise.coordinator import start_planned
from launcher.supervise.run_plan import EXIT_CODES, Execution
from launcher.transport.agent_client import Agent


class EndedByUserError(Exception):
    """Somebody has ended a run that was not to be ended."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Rehearsal:
    """A short run of `config`; `plan_of` plans it on some of the launch's nodes. Else as `Execution` has it."""

    config: RunConfig
    launch: LaunchConfig
    run: RunDir
    plan_of: Callable[..., LaunchPlan]
    console: Console
    check: Callable[[], object] = field(default=lambda: None)
    look: Callable[[], None] = field(default=lambda: None)
    start_agent: Callable[[NodePlan], Agent] = start_planned

    def run_to_end(self, *, may_stop: bool = False) -> None:
        """Until it is finished. Raises what a launch raises, and EndedByUserError if it is stopped, unless it may."""
        execution = Execution(
            self.config,
            self.launch,
            self.run,
            self.plan_of,
            check=self.check,
            console=self.console,
            look=self.look,
            start_agent=self.start_agent,
        )
        code = execution.run_to_end(self._goes_on())
        if code == EXIT_CODES["interrupted"] or (code == EXIT_CODES["stopped"] and not may_stop):
            raise EndedByUserError(code)

    def _goes_on(self) -> list[str]:
        """The command that would go on with this one run."""
        options = {"--nodes": self.launch.nodes, "--gpus": self.plan_of().workers_per_node}
        flat = (str(part) for option in options.items() for part in option)
        device, folder = self.launch.device, str(self.run.path)
        return ["fmfsd-launch", str(self.run.config), *flat, "--device", device, "--run-dir", folder]


def shortened(config: RunConfig, steps: int) -> list[str]:
    """What makes a run of `config` end after so many steps, with an evaluation and a checkpoint there and nowhere else,
    whatever its milestones are."""
    return [
        f"train.epochs={config.train.epochs + steps}",
        f"train.max_steps={steps}",
        f"train.evaluate_every={steps} steps",
        "checkpoint.every_epochs=null",
        "checkpoint.every_steps=null",
        "checkpoint.every_minutes=null",
    ]
