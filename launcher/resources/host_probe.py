"""Host probe: what each host of a site offers and sees, queried from an agent on every host at the same time."""

import math
import selectors
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from fmfsd.errors import CheckError, Problem
from launcher.agent.import_paths import differing_imports
from launcher.agent.probe import look
from launcher.agent.resources import Resources
from launcher.resources.site import Site
from launcher.transport.agent_client import Agent, Link, closing_all
from launcher.transport.connect import on_the_way, open_all

ANSWER_S = 30.0
JOB_TRIES, JOB_PAUSE_S = 3, 2.0
"""In a Slurm job, the first steps on a node that was just recovered may fail (credential revoked)."""
LOOK_S = 0.1
HERE = "this machine"


class UnreachableError(CheckError):
    """Checks failed, partly because hosts did not respond."""


@dataclass(frozen=True)
class Survey:
    """Results of the host probe, by host. `answers`: what each host reported (`launcher.agent.probe`).

    `failures`: why a host did not answer. `here`: the report of this machine. `query`: the query sent to all hosts.
    `clock_s` in an answer: the seconds by which the host's clock is ahead of ours, as far as that is certain.
    """

    seen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trouble: Mapping[str, str] = field(default_factory=dict)
    here: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    imports: Mapping[str, Mapping[str, Sequence[str | None]]] = field(default_factory=dict)
    """By host: packages that workers would import from another file than the check does, and both files."""

    @property
    def hardware(self) -> dict[str, Any]:
        """Return the hardware by host; empty if no host was probed."""
        return {host: answer["hardware"] for host, answer in self.seen.items()}

    def told(self, site: Site) -> Site:
        """Return `site` with the minimum of the hosts' resources."""
        if not self.seen:
            return site
        if site.is_here:
            return replace(site, resources=_resources(next(iter(self.seen.values()))))
        minimum = Resources.least([_resources(answer) for answer in self.seen.values()])
        if site.reach == "srun":  # a node may have more cores than the job, whose steps get only the job's
            minimum = replace(minimum, cores=min(minimum.cores, site.resources.cores))
        return replace(site, resources=minimum)

    def updated(self, retry: "Survey") -> "Survey":
        """Return this result with the answers of hosts that were queried again."""
        still_failing = {host: problem for host in self.trouble if (problem := retry.trouble.get(host, ""))}
        return Survey({**self.seen, **retry.seen}, still_failing, self.here, self.asked, self.imports)

    def of(self, hosts: Sequence[str]) -> "Survey":
        """Return the results of these hosts only, in their order."""
        selected = {host: self.seen[host] for host in hosts if host in self.seen}
        failed = {host: problem for host, problem in self.trouble.items() if host in hosts}
        return Survey(selected, failed, self.here, self.asked, self.imports)


def survey(
    site: Site,
    environment: Mapping[str, str],
    *,
    run: Path,
    cwd: str,
    index: Path | None,
    variables: Mapping[str, str] | None = None,
) -> Survey:
    """Query every host that is not this machine for what a launch of `run` needs; `index`: that of the data set.

    A temporary file in the run's parent folder shows whether all hosts share it. On this machine, only compare which
    packages workers with `variables` would import with those of the check.
    """
    if site.is_here and not site.is_wrapped:
        return Survey(imports={HERE: _imports(variables, environment)} if variables is not None else {})
    if not site.known_hosts:
        return Survey()
    parent = next(folder for folder in run.parents if folder.is_dir())
    start_agent = partial(site.start_agent, environment=environment)
    with _marker_file(parent) as marker:
        message = {
            "cwd": cwd,
            "parent": str(parent),
            "marker": marker,
            "index": str(index or ""),
            "variables": variables,
        }
        message |= {"wrapped": "yes"} if site.is_wrapped else {}
        results = ask(site.known_hosts, start_agent, **message)
        for _ in range(JOB_TRIES - 1 if site.reach == "srun" else 0):
            if results.trouble:
                time.sleep(JOB_PAUSE_S)
                results = results.updated(ask(tuple(results.trouble), start_agent, **message))
        return compared_on(site, results.of(site.known_hosts), look({}, environment))


def compared_on(site: Site, results: Survey, here: Mapping[str, Any]) -> Survey:
    """Return the results with the reference for comparisons; behind a wrapper, only the source code must match ours."""
    if not site.is_wrapped:
        return replace(results, here=here)
    first: Mapping[str, Any] = next(iter(results.seen.values()), {})
    hint = "behind --wrap or in srun's container, stdin and stdout must reach the agent"
    failed = {host: f"{problem} ({hint})" for host, problem in results.trouble.items()}
    reference = {**first, "source": here["source"]} if first else {}
    return Survey(results.seen, failed, reference, results.asked, results.imports)


def _imports(variables: Mapping[str, str], environment: Mapping[str, str]) -> Mapping[str, Sequence[str | None]]:
    """Return the import differences of a worker on this machine. CheckError if its Python does not start."""
    try:
        return differing_imports(variables, environment)
    except OSError as error:
        raise CheckError([Problem(HERE, str(error))]) from error


def ask(hosts: Sequence[str], start_agent: Callable[[str], Agent], **message: Any) -> Survey:
    """Query the agent on each host. A host without an answer in time gets its connection's error output instead."""
    deadline = time.monotonic() + ANSWER_S
    with closing_all() as agents, selectors.DefaultSelector() as selector:
        starts = [partial(start_agent, host) for host in hosts]
        agents_or_errors = open_all(starts, agents, stop=lambda: time.monotonic() > deadline)
        queries = [_HostQuery(host, agent, message) for host, agent in zip(hosts, agents_or_errors, strict=True)]
        for query in queries:
            if isinstance(query.agent, Link):
                selector.register(query.agent, selectors.EVENT_READ, query.handle_events)
        _wait_for_answers(selector, deadline=deadline)
        failures = {query.host: query.trouble() for query in queries if not query.answer}
    answers = {query.host: query.answer for query in queries if query.answer}
    imports = {host: answer.get("imports", {}) for host, answer in answers.items()}
    return Survey(answers, failures, asked=message, imports=imports)


def _wait_for_answers(selector: selectors.BaseSelector, *, deadline: float) -> None:
    """Read events of all agents until each query is complete."""
    while selector.get_map() and time.monotonic() < deadline:
        for key, _ in selector.select(LOOK_S):
            if key.data():
                selector.unregister(key.fileobj)


class _HostQuery:
    """The query of one host's agent."""

    def __init__(self, host: str, agent: Link | OSError, message: Mapping[str, Any]) -> None:
        self.host, self.agent, self._message = host, agent, message
        self.answer = dict[str, Any]()
        self._problem = f"can't be reached: {agent}" if isinstance(agent, OSError) else ""
        self._sent_at = math.inf

    def trouble(self) -> str:
        """Return why there is no answer, with the output that the host printed instead."""
        if self._problem or isinstance(self.agent, OSError):
            return self._problem
        printed = on_the_way({"words": self.agent.printed})
        return f"no answer in {ANSWER_S:g} s" + (f"; it printed: {printed}" if printed else "")

    def handle_events(self) -> bool:
        """Handle the agent's events. Return whether the query is complete.

        The query is sent when the agent is ready, because its answer contains its clock.
        """
        assert isinstance(self.agent, Link)
        for event in self.agent.read():
            if event["event"] == "ready":
                self._sent_at = time.time()
                self.agent.tell(do="look", **self._message)
            elif event["event"] == "seen":
                self.answer = {**event, "clock_s": _ahead(event["time"], self._sent_at, time.time())}
            elif event["event"] == "failed":
                self._problem = event["message"]
            elif event["event"] == "gone":
                self._problem = f"no agent could be started there: {on_the_way(event)}"
            if event["event"] in ("seen", "failed", "gone"):
                return True
        return False


def _ahead(theirs: float, asked_at: float, heard_at: float) -> float:
    """Return the seconds by which a clock, read between these two local times, is certainly ahead; negative: behind."""
    return min(0.0, theirs - asked_at) + max(0.0, theirs - heard_at)


def _resources(answer: Mapping[str, Any]) -> Resources:
    cores = tuple(answer["core_numbers"])
    return Resources(answer["cores"], tuple(answer["gpus"]), answer["memory"], answer["gpu_memory"], cores)


@contextmanager
def _marker_file(folder: Path) -> Iterator[str]:
    """Create a temporary file in `folder` for the duration of the block, and yield its name; empty if that fails."""
    with ExitStack() as stack:
        name = ""
        with suppress(OSError):
            name = stack.enter_context(NamedTemporaryFile(dir=folder, prefix=".fmfsd-seen-")).name
        yield name
