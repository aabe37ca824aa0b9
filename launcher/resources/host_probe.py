"""What each host of a site offers and sees, asked of an agent there: all hosts at once."""

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
"""In a Slurm job, the first steps on a node that has come back may fail (credential revoked)."""
LOOK_S = 0.1
HERE = "this machine"


class UnreachableError(CheckError):
    """Checks failed, and hosts that did not answer are among the reasons."""


@dataclass(frozen=True)
class Survey:
    """By host: the answer (`launcher.agent.probe`) of those that gave one, and why others did not; `here` is our own.

    `asked` is what all were asked. An answer's `clock_s` are the seconds by which its clock is ahead of ours, as far as
    that is sure.
    """

    seen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trouble: Mapping[str, str] = field(default_factory=dict)
    here: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    imports: Mapping[str, Mapping[str, Sequence[str | None]]] = field(default_factory=dict)
    """By host: packages that workers would import from elsewhere than the check, and both places."""

    @property
    def hardware(self) -> dict[str, Any]:
        """By host; none where no host was asked."""
        return {host: answer["hardware"] for host, answer in self.seen.items()}

    def told(self, site: Site) -> Site:
        """`site` with what each of the hosts has at least."""
        if not self.seen:
            return site
        if site.is_here:
            return replace(site, resources=_resources(next(iter(self.seen.values()))))
        least = Resources.least([_resources(answer) for answer in self.seen.values()])
        if site.reach == "srun":  # a node may show more than the job has, which no step of it is given
            least = replace(least, cores=min(least.cores, site.resources.cores))
        return replace(site, resources=least)

    def updated(self, again: "Survey") -> "Survey":
        """Return this survey with the answers of hosts that were asked once more."""
        trouble = {host: again.trouble.get(host, "") for host in self.trouble}
        return replace(self, seen={**self.seen, **again.seen}, trouble={h: w for h, w in trouble.items() if w})

    def of(self, hosts: Sequence[str]) -> "Survey":
        """Return what is known of these hosts alone, in their order."""
        seen = {host: self.seen[host] for host in hosts if host in self.seen}
        return replace(self, seen=seen, trouble={h: w for h, w in self.trouble.items() if h in hosts})


def survey(
    site: Site,
    environment: Mapping[str, str],
    *,
    run: Path,
    cwd: str,
    index: Path | None,
    variables: Mapping[str, str] | None = None,
) -> Survey:
    """Of all hosts that are not this machine: what a launch of `run` with the data set of that index wants to know.

    A file in the run's parent folder, removed at once, shows whether they share it. Also of this machine: whether
    workers with `variables` would import the same packages as the check.
    """
    if site.is_here and not site.is_wrapped:
        return Survey(imports={HERE: _imports(variables, environment)} if variables is not None else {})
    if not site.known_hosts:
        return Survey()
    parent = next(folder for folder in run.parents if folder.is_dir())
    start_agent = partial(site.start_agent, environment=environment)
    with _marker(parent) as marker:
        question = {
            "cwd": cwd,
            "parent": str(parent),
            "marker": marker,
            "index": str(index or ""),
            "variables": variables,
        }
        question |= {"wrapped": "yes"} if site.is_wrapped else {}
        found = ask(site.known_hosts, start_agent, **question)
        for _ in range(JOB_TRIES - 1 if site.reach == "srun" else 0):
            if found.trouble:
                time.sleep(JOB_PAUSE_S)
                found = found.updated(ask(tuple(found.trouble), start_agent, **question))
        return compared_on(site, found.of(site.known_hosts), look({}, environment))


def compared_on(site: Site, found: Survey, here: Mapping[str, Any]) -> Survey:
    """Return the survey with what hosts are compared to; behind a wrapper, only their code is to be as it is here."""
    if not site.is_wrapped:
        return replace(found, here=here)
    first: Mapping[str, Any] = next(iter(found.seen.values()), {})
    hint = "behind --wrap or in srun's container, stdin and stdout must reach the agent"
    trouble = {host: f"{words} ({hint})" for host, words in found.trouble.items()}
    return replace(found, here={**first, "source": here["source"]} if first else {}, trouble=trouble)


def _imports(variables: Mapping[str, str], environment: Mapping[str, str]) -> Mapping[str, Sequence[str | None]]:
    """Of a worker on this machine. CheckError if its Python does not start."""
    try:
        return differing_imports(variables, environment)
    except OSError as error:
        raise CheckError([Problem(HERE, str(error))]) from error


def ask(hosts: Sequence[str], start_agent: Callable[[str], Agent], **question: Any) -> Survey:
    """What those said that answered in time, and of the others the last words of the way to them."""
    until = time.monotonic() + ANSWER_S
    with closing_all() as agents, selectors.DefaultSelector() as selector:
        starts = [partial(start_agent, host) for host in hosts]
        opened = open_all(starts, agents, stop=lambda: time.monotonic() > until)
        talks = [_Talk(host, agent, question) for host, agent in zip(hosts, opened, strict=True)]
        for talk in talks:
            if isinstance(talk.agent, Link):
                selector.register(talk.agent, selectors.EVENT_READ, talk.hear)
        _listen(selector, until=until)
        trouble = {talk.host: talk.trouble() for talk in talks if not talk.answer}
    seen = {talk.host: talk.answer for talk in talks if talk.answer}
    imports = {host: answer.get("imports", {}) for host, answer in seen.items()}
    return Survey(seen, trouble, asked=question, imports=imports)


def _listen(selector: selectors.BaseSelector, *, until: float) -> None:
    """To all agents, until each of them has said all that it has to say."""
    while selector.get_map() and time.monotonic() < until:
        for key, _ in selector.select(LOOK_S):
            if key.data():
                selector.unregister(key.fileobj)


class _Talk:
    """With the agent on one host."""

    def __init__(self, host: str, agent: Link | OSError, question: Mapping[str, Any]) -> None:
        self.host, self.agent, self._question = host, agent, question
        self.answer, self._failure = (
            dict[str, Any](),
            f"can't be reached: {agent}" if isinstance(agent, OSError) else "",
        )
        self._asked_at = math.inf

    def trouble(self) -> str:
        """Why there is no answer, with what the host has printed instead."""
        if self._failure or isinstance(self.agent, OSError):
            return self._failure
        printed = on_the_way({"words": self.agent.printed})
        return f"no answer in {ANSWER_S:g} s" + (f"; it printed: {printed}" if printed else "")

    def hear(self) -> bool:
        """Whether this was the last that there is to hear. It is asked once it is there, as its clock is read too."""
        assert isinstance(self.agent, Link)
        for event in self.agent.read():
            if event["event"] == "ready":
                self._asked_at = time.time()
                self.agent.tell(do="look", **self._question)
            elif event["event"] == "seen":
                self.answer = {**event, "clock_s": _ahead(event["time"], self._asked_at, time.time())}
            elif event["event"] == "failed":
                self._failure = event["message"]
            elif event["event"] == "gone":
                self._failure = f"no agent could be started there: {on_the_way(event)}"
            if event["event"] in ("seen", "failed", "gone"):
                return True
        return False


def _ahead(theirs: float, asked_at: float, heard_at: float) -> float:
    """The seconds by which a clock that was read between these moments of ours is surely ahead of ours; behind: < 0."""
    return min(0.0, theirs - asked_at) + max(0.0, theirs - heard_at)


def _resources(answer: Mapping[str, Any]) -> Resources:
    cores = tuple(answer["core_numbers"])
    return Resources(answer["cores"], tuple(answer["gpus"]), answer["memory"], answer["gpu_memory"], cores)


@contextmanager
def _marker(folder: Path) -> Iterator[str]:
    """A file in `folder` as long as the block lasts; no name if none can be written."""
    with ExitStack() as stack:
        name = ""
        with suppress(OSError):
            name = stack.enter_context(NamedTemporaryFile(dir=folder, prefix=".fmfsd-seen-")).name
        yield name
