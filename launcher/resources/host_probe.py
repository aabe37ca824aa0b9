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
from launcher.agent.available_resources import Resources
from launcher.agent.describe_machine import probe_machine
from launcher.agent.import_paths import find_import_differences
from launcher.resources.site import Site
from launcher.transport.agent_client import AgentConnection, AgentProcess, close_agents_together
from launcher.transport.connect_with_retry import describe_lost_connection, open_connections

ANSWER_TIMEOUT_S = 30.0
JOB_TRIES, RETRY_DELAY_S = 3, 2.0
"""In a Slurm job, the first steps on a node that was just recovered may fail (credential revoked)."""
POLL_S = 0.1
THIS_MACHINE = "this machine"


class UnreachableError(CheckError):
    """Checks failed, partly because hosts did not respond."""


@dataclass(frozen=True)
class HostProbe:
    """Results of the host probe, by host. `answers`: what each host reported (`launcher.agent.describe_machine`).

    `failures`: why a host did not answer. `here`: the report of this machine. `query`: the query sent to all hosts.
    `clock_s` in an answer: the seconds by which the host's clock is ahead of ours, as far as that is certain.
    """

    answers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    here: Mapping[str, Any] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    imports: Mapping[str, Mapping[str, Sequence[str | None]]] = field(default_factory=dict)
    """By host: packages that workers would import from another file than the check does, and both files."""

    @property
    def hardware(self) -> dict[str, Any]:
        """Return the hardware by host; empty if no host was probed."""
        return {host: answer["hardware"] for host, answer in self.answers.items()}

    def apply_to(self, site: Site) -> Site:
        """Return `site` with the minimum of the hosts' resources."""
        if not self.answers:
            return site
        if site.is_here:
            return replace(site, resources=_resources(next(iter(self.answers.values()))))
        minimum = Resources.minimum([_resources(answer) for answer in self.answers.values()])
        if site.transport == "srun":  # a node may have more cores than the job, whose steps get only the job's
            minimum = replace(minimum, cores=min(minimum.cores, site.resources.cores))
        return replace(site, resources=minimum)

    def with_retry(self, retry: "HostProbe") -> "HostProbe":
        """Return this result with the answers of hosts that were queried again."""
        still_failing = {host: problem for host in self.failures if (problem := retry.failures.get(host, ""))}
        return HostProbe({**self.answers, **retry.answers}, still_failing, self.here, self.query, self.imports)

    def select(self, hosts: Sequence[str]) -> "HostProbe":
        """Return the results of these hosts only, in their order."""
        selected = {host: self.answers[host] for host in hosts if host in self.answers}
        failed = {host: problem for host, problem in self.failures.items() if host in hosts}
        return HostProbe(selected, failed, self.here, self.query, self.imports)


def probe_hosts(
    site: Site,
    environment: Mapping[str, str],
    *,
    run: Path,
    cwd: str,
    index: Path | None,
    variables: Mapping[str, str] | None = None,
) -> HostProbe:
    """Query every host that is not this machine for what a launch of `run` needs; `index`: that of the data set.

    A temporary file in the run's parent folder shows whether all hosts share it. On this machine, only compare which
    packages workers with `variables` would import with those of the check.
    """
    if site.is_here and not site.is_wrapped:
        return HostProbe(imports={THIS_MACHINE: _imports(variables, environment)} if variables is not None else {})
    if not site.hosts_to_probe:
        return HostProbe()
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
        results = query_hosts(site.hosts_to_probe, start_agent, **message)
        for _ in range(JOB_TRIES - 1 if site.transport == "srun" else 0):
            if results.failures:
                time.sleep(RETRY_DELAY_S)
                results = results.with_retry(query_hosts(tuple(results.failures), start_agent, **message))
        return with_reference(site, results.select(site.hosts_to_probe), probe_machine({}, environment))


def with_reference(site: Site, results: HostProbe, here: Mapping[str, Any]) -> HostProbe:
    """Return the results with the reference for comparisons; behind a wrapper, only the source code must match ours."""
    if not site.is_wrapped:
        return replace(results, here=here)
    first: Mapping[str, Any] = next(iter(results.answers.values()), {})
    hint = "behind --wrap or in srun's container, stdin and stdout must reach the agent"
    failed = {host: f"{problem} ({hint})" for host, problem in results.failures.items()}
    reference = {**first, "source": here["source"]} if first else {}
    return HostProbe(results.answers, failed, reference, results.query, results.imports)


def _imports(variables: Mapping[str, str], environment: Mapping[str, str]) -> Mapping[str, Sequence[str | None]]:
    """Return the import differences of a worker on this machine. CheckError if its Python does not start."""
    try:
        return find_import_differences(variables, environment)
    except OSError as error:
        raise CheckError([Problem(THIS_MACHINE, str(error))]) from error


def query_hosts(hosts: Sequence[str], start_agent: Callable[[str], AgentProcess], **message: Any) -> HostProbe:
    """Query the agent on each host. A host without an answer in time gets its connection's error output instead."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    with close_agents_together() as agents, selectors.DefaultSelector() as selector:
        starts = [partial(start_agent, host) for host in hosts]
        agents_or_errors = open_connections(starts, agents, stop=lambda: time.monotonic() > deadline)
        queries = [_HostQuery(host, agent, message) for host, agent in zip(hosts, agents_or_errors, strict=True)]
        for query in queries:
            if isinstance(query.agent, AgentConnection):
                selector.register(query.agent, selectors.EVENT_READ, query.handle_events)
        _wait_for_answers(selector, deadline=deadline)
        failures = {query.host: query.trouble() for query in queries if not query.answer}
    answers = {query.host: query.answer for query in queries if query.answer}
    imports = {host: answer.get("imports", {}) for host, answer in answers.items()}
    return HostProbe(answers, failures, query=message, imports=imports)


def _wait_for_answers(selector: selectors.BaseSelector, *, deadline: float) -> None:
    """Read events of all agents until each query is complete."""
    while selector.get_map() and time.monotonic() < deadline:
        for key, _ in selector.select(POLL_S):
            if key.data():
                selector.unregister(key.fileobj)


class _HostQuery:
    """The query of one host's agent."""

    def __init__(self, host: str, agent: AgentConnection | OSError, message: Mapping[str, Any]) -> None:
        self.host, self.agent, self._message = host, agent, message
        self.answer = dict[str, Any]()
        self._problem = f"can't be reached: {agent}" if isinstance(agent, OSError) else ""
        self._sent_at = math.inf

    def trouble(self) -> str:
        """Return why there is no answer, with the output that the host printed instead."""
        if self._problem or isinstance(self.agent, OSError):
            return self._problem
        printed = describe_lost_connection({"words": self.agent.startup_output})
        return f"no answer in {ANSWER_TIMEOUT_S:g} s" + (f"; it printed: {printed}" if printed else "")

    def handle_events(self) -> bool:
        """Handle the agent's events. Return whether the query is complete.

        The query is sent when the agent is ready, because its answer contains its clock.
        """
        assert isinstance(self.agent, AgentConnection)
        for event in self.agent.read():
            if event["event"] == "ready":
                self._sent_at = time.time()
                self.agent.send(do="look", **self._message)
            elif event["event"] == "seen":
                self.answer = {**event, "clock_s": _clock_ahead_s(event["time"], self._sent_at, time.time())}
            elif event["event"] == "failed":
                self._problem = event["message"]
            elif event["event"] == "gone":
                self._problem = f"no agent could be started there: {describe_lost_connection(event)}"
            if event["event"] in ("seen", "failed", "gone"):
                return True
        return False


def _clock_ahead_s(remote_time: float, sent_at: float, received_at: float) -> float:
    """Return the seconds by which a clock, read between these two local times, is certainly ahead; negative: behind."""
    return min(0.0, remote_time - sent_at) + max(0.0, remote_time - received_at)


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
