"""Short runs of a user's config in directories of their own, for drill, verify and profile."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from fmfsd.config import RunConfig
from fmfsd.config.load import config_name
from fmfsd.run.run_dir import RunDir
from launcher.config.launch_config import LaunchConfig
from launcher.launch_request import LaunchRequest, resolve_run_dir
from launcher.plan.launch_plan import LaunchPlan, NodePlan
from launcher.supervise.coordinator import start_node_agent
from launcher.supervise.execute_plan import EXIT_CODES, Execution
from launcher.transport.agent_client import AgentProcess


class InterruptedByUserError(Exception):
    """The user has stopped or interrupted a short run."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


@dataclass(frozen=True)
class ShortRun:
    """A run of `config`; `plan_of` plans it on some of the launch's nodes. Other fields are those of `Execution`."""

    config: RunConfig
    launch: LaunchConfig
    run: RunDir
    plan_of: Callable[..., LaunchPlan]
    console: Console
    check: Callable[[], object] = field(default=lambda: None)
    on_poll: Callable[[], None] = field(default=lambda: None)
    start_agent: Callable[[NodePlan], AgentProcess] = start_node_agent

    def run_to_end(self, *, may_stop: bool = False) -> None:
        """Train to the end. Raises what a launch raises; InterruptedByUserError also for a stop, unless `may_stop`."""
        execution = Execution(
            self.config,
            self.launch,
            self.run,
            self.plan_of,
            check=self.check,
            console=self.console,
            on_poll=self.on_poll,
            start_agent=self.start_agent,
        )
        code = execution.run_to_end(self._resume_command())
        if code == EXIT_CODES["interrupted"] or (code == EXIT_CODES["stopped"] and not may_stop):
            raise InterruptedByUserError(code)

    def _resume_command(self) -> list[str]:
        """Return the command that resumes this one run."""
        options = {"--nodes": self.launch.nodes, "--gpus": self.plan_of().workers_per_node}
        flat = (str(part) for option in options.items() for part in option)
        device, folder = self.launch.device, str(self.run.path)
        return ["fmfsd-launch", str(self.run.config), *flat, "--device", device, "--run-dir", folder]


def shorten(config: RunConfig, steps: int) -> list[str]:
    """Return overrides that end a run of `config` after `steps` steps, with one evaluation and one checkpoint there."""
    return [
        f"train.epochs={config.train.epochs + steps}",
        f"train.max_steps={steps}",
        f"train.evaluate_every={steps} steps",
        "checkpoint.every_epochs=null",
        "checkpoint.every_steps=null",
        "checkpoint.every_minutes=null",
    ]


def short_run_dir(request: LaunchRequest, cwd: str, purpose: str) -> RunDir:
    """Return the requested run directory, else a new one named after the config and `purpose`."""
    if request.launch.run_dir is not None:
        return resolve_run_dir(request, cwd)
    return RunDir.new(Path(cwd) / "runs", f"{config_name(request.config)}-{purpose}")
