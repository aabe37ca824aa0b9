"""Runs a config with each number of workers, one after the other, and shows how far the results differ."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from fmfsd.errors import RunFailedError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.diagnostics.short_run import InterruptedByUserError, ShortRun
from launcher.diagnostics.verify.tolerances import PROMISES, Row, print_json, table
from launcher.diagnostics.verify.worker_counts import ComparedRun, compared_runs
from launcher.launch_request import LaunchRequest
from launcher.supervise.execute_plan import EXIT_CODES, create_console
from launcher.supervise.stop_requests import StopRequests
from launcher.transport.local_commands import run_foreground


def verify_invariance(
    request: LaunchRequest, counts: Sequence[int], steps: int, *, environment: Mapping[str, str], cwd: str
) -> int:
    """Return the exit code: 1 if the results differ by more than rounding. ConfigError or CheckError before a start."""
    runs = compared_runs(request, counts, steps, environment=environment, cwd=cwd)
    if request.stop_after != "run":
        return _show(runs, request)
    verification = Verification(runs, steps, create_console(as_json=request.as_json))
    return verification.run_to_end(as_json=request.as_json)


def _show(runs: Sequence[ComparedRun], request: LaunchRequest) -> int:
    for text in _warnings(runs):
        print(text, file=sys.stderr)
    if request.as_json:
        print(json.dumps({"runs": [json.loads(run.plan.to_json()) for run in runs]}, indent=2))
        return 0
    for run in runs:
        print(run.found.render(run.plan) if request.stop_after == "check" else run.plan.render())
    return 0


def _warnings(runs: Sequence[ComparedRun]) -> list[str]:
    """Return each warning once."""
    return list(dict.fromkeys(f"warning: {text}" for run in runs for text in run.found.warnings))


class Verification:
    """Trains `runs` for `steps` steps each, and compares each with the first."""

    def __init__(self, runs: Sequence[ComparedRun], steps: int, console: Console) -> None:
        self._runs, self._steps, self._console = runs, steps, console
        self._folder, self._config = runs[0].run.path.parent, runs[0].found.config
        self._promise = PROMISES[self._config.train.precision]

    def run_to_end(self, *, as_json: bool) -> int:
        self._announce()
        requests = StopRequests()
        try:
            with requests.install_handlers():
                for run in self._runs:
                    self._train(run, requests)
                rows = self._rows(requests)
        except InterruptedByUserError as interruption:
            self._print("the comparison was ended")
            return interruption.exit_code
        self._console.print(table(_size(self._runs[0]), rows))
        for row in rows:
            self._print(row.describe_gradients())
        self._print("relative differences, the largest of all steps; comparison.json lists every step")
        if as_json:
            print_json(self._config.train.precision, rows)
        return RunFailedError.exit_code if any(row.beyond for row in rows) else 0

    def _announce(self) -> None:
        train, numbers = self._config.train, ", ".join(str(_size(run)[0]) for run in self._runs)
        device = self._runs[0].plan.device
        requested = self._runs[0].launch.device
        where = f"{device} (no GPU is visible)" if requested == "auto" and device == "cpu" else device
        self._print(f"verify: {self._folder}")
        self._print(
            f"{self._steps} steps by {numbers} workers on {where}, {train.precision}, global batch {train.batch}"
        )
        self._print(f"{train.precision}: {self._promise}")
        if self._config.model.sync_bn is False:
            self._print("model.sync_bn is off: results depend on the number of workers, so they will differ")
        for text in _warnings(self._runs):
            self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False)

    def _train(self, run: ComparedRun, requests: StopRequests) -> None:
        _require_no_stop(requests)
        self._print("")
        config = run.found.config
        ShortRun(config, run.launch, run.run, run.plan_of, self._console, check=run.check).run_to_end()

    def _rows(self, requests: StopRequests) -> list[Row]:
        out, folders = self._folder / "comparison.json", [str(run.run.path) for run in self._runs]
        _require_no_stop(requests)
        argv = (sys.executable, "-P", "-m", "fmfsd", "compare", "--out", str(out), "--", *folders)
        code = run_foreground(argv, stop=lambda: requests.is_stop_requested)
        _require_no_stop(requests)
        if code:
            raise RunFailedError(f"the runs in {self._folder} could not be compared (exit code {code})")
        for folder in folders:
            shutil.rmtree(RunDir(Path(folder)).trace)
        comparisons = read_json(out)["comparisons"]
        return [Row.of(*_size(run), each, self._promise) for run, each in zip(self._runs[1:], comparisons, strict=True)]


def _require_no_stop(requests: StopRequests) -> None:
    if requests.is_stop_requested:
        raise InterruptedByUserError(EXIT_CODES["interrupted"])


def _size(run: ComparedRun) -> tuple[int, int]:
    """Return the numbers of workers and nodes."""
    return run.plan.num_workers, run.launch.nodes
