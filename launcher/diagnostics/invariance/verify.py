"""The same short run by each number of workers, one after the other, and a table of how far they are apart."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from fmfsd.errors import RunFailedError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.diagnostics.invariance.results import PROMISES, Row, print_json, table
from launcher.diagnostics.invariance.worker_counts import Crew, crews_of
from launcher.diagnostics.short_run import EndedByUserError, Rehearsal
from launcher.prepare_launch import Request
from launcher.supervise.run_plan import EXIT_CODES, console_of
from launcher.supervise.stop_requests import Requests
from launcher.transport.local_commands import run_here


def verify_invariance(request: Request, *, environment: Mapping[str, str], cwd: str) -> int:
    """The exit code: 1 if a number of workers trains otherwise than the first. ConfigError or CheckError before."""
    assert request.invariance is not None
    crews = crews_of(request, request.invariance, environment=environment, cwd=cwd)
    if request.stop_after != "run":
        return _show(crews, request)
    verification = Verification(crews, request.invariance.steps, console_of(as_json=request.as_json))
    return verification.run_to_end(as_json=request.as_json)


def _show(crews: Sequence[Crew], request: Request) -> int:
    for text in _warnings(crews):
        print(text, file=sys.stderr)
    if request.as_json:
        print(json.dumps({"runs": [json.loads(crew.plan.to_json()) for crew in crews]}, indent=2))
        return 0
    for crew in crews:
        print(crew.found.text(crew.plan) if request.stop_after == "check" else crew.plan.render())
    return 0


def _warnings(crews: Sequence[Crew]) -> list[str]:
    """Each once."""
    return list(dict.fromkeys(f"warning: {text}" for crew in crews for text in crew.found.warnings))


class Verification:
    """`crews` make a run of `steps` steps each; the first one is the measure."""

    def __init__(self, crews: Sequence[Crew], steps: int, console: Console) -> None:
        self._crews, self._steps, self._console = crews, steps, console
        self._folder, self._config = crews[0].run.path.parent, crews[0].found.config
        self._promise = PROMISES[self._config.train.precision]

    def run_to_end(self, *, as_json: bool) -> int:
        self._announce()
        requests = Requests()
        try:
            with requests.heard():
                for crew in self._crews:
                    self._run(crew, requests)
                rows = self._rows(requests)
        except EndedByUserError as ended:
            self._say("the comparison was ended")
            return ended.exit_code
        self._console.print(table(_size(self._crews[0]), rows))
        for row in rows:
            self._say(row.about_gradients())
        self._say("all relative, and the largest of any step; those of each step are in comparison.json")
        if as_json:
            print_json(self._config.train.precision, rows)
        return RunFailedError.exit_code if any(row.beyond for row in rows) else 0

    def _announce(self) -> None:
        train, numbers = self._config.train, ", ".join(str(_size(crew)[0]) for crew in self._crews)
        device = self._crews[0].plan.device
        asked = self._crews[0].launch.device
        where = f"{device} (no GPU is visible)" if asked == "auto" and device == "cpu" else device
        self._say(f"invariance: {self._folder}")
        self._say(f"{self._steps} steps by {numbers} workers on {where}, {train.precision}, global batch {train.batch}")
        self._say(f"{train.precision}: {self._promise}")
        if self._config.model.sync_bn is False:
            self._say("model.sync_bn is off: results depend on the number of workers, so they will not agree")
        for text in _warnings(self._crews):
            self._say(text)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def _run(self, crew: Crew, requests: Requests) -> None:
        _require_going_on(requests)
        self._say("")
        config = crew.found.config
        Rehearsal(config, crew.launch, crew.run, crew.plan_of, self._console, check=crew.check).run_to_end()

    def _rows(self, requests: Requests) -> list[Row]:
        out, runs = self._folder / "comparison.json", [str(crew.run.path) for crew in self._crews]
        _require_going_on(requests)
        argv = (sys.executable, "-P", "-m", "fmfsd", "compare", "--out", str(out), "--", *runs)
        code = run_here(argv, stop=lambda: requests.stop)
        _require_going_on(requests)
        if code:
            raise RunFailedError(f"the runs in {self._folder} were not compared (exit code {code})")
        for run in runs:
            shutil.rmtree(RunDir(Path(run)).trace)
        found = read_json(out)["comparisons"]
        return [Row.of(*_size(crew), each, self._promise) for crew, each in zip(self._crews[1:], found, strict=True)]


def _require_going_on(requests: Requests) -> None:
    if requests.stop:
        raise EndedByUserError(EXIT_CODES["interrupted"])


def _size(crew: Crew) -> tuple[int, int]:
    """Workers and nodes."""
    return crew.plan.num_workers, crew.launch.nodes
