"""Asks this machine and the hosts, judges what they say, and shows it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial

from fmfsd.errors import CheckError
from launcher.agent.probe import look
from launcher.check import host_checks, machine_checks
from launcher.config.launch_config import LaunchConfig
from launcher.diagnostics.doctor import environment as surroundings
from launcher.diagnostics.doctor import machine
from launcher.diagnostics.doctor.finding import Finding
from launcher.resources.host_probe import HERE, Survey, ask, compared_on
from launcher.resources.site import Site


def examine(site: Site, *, environment: Mapping[str, str], cwd: str, as_json: bool) -> int:
    """Print what there is; the exit code: 0, or a failed check's if something is wrong."""
    here = look({"condition": cwd}, environment)
    start_agent = partial(site.start_agent, environment=environment)
    hosts = ask(site.known_hosts, start_agent, condition=cwd)
    found = [
        *machine.findings(HERE, here),
        *(() if site.is_wrapped else _software()),
        *surroundings.findings(environment, cwd=cwd),
    ]
    found += [finding for host, answer in hosts.seen.items() for finding in machine.findings(host, answer)]
    found += _between(compared_on(site, Survey(hosts.seen, hosts.trouble), here))
    print_json(found) if as_json else show(found)
    return CheckError.exit_code if any(finding.wrong for finding in found) else 0


def _software() -> Iterator[Finding]:
    for problem in machine_checks.software():
        yield Finding(HERE, problem.where, "", problem.message)


def _between(hosts: Survey) -> Iterator[Finding]:
    """What shows only when hosts are compared."""
    for problem in host_checks.problems(LaunchConfig(nodes=max(1, len(hosts.seen))), hosts):
        yield Finding("hosts", problem.where, "", problem.message)
    for text in host_checks.warnings(hosts):
        yield Finding("hosts", "note", text)


def show(found: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "found", "what to mend")
    for name in dict.fromkeys(finding.machine for finding in found):
        table.add_section()
        table.add_row(f"[bold]{name}[/bold]")
        for finding in found:
            if finding.machine == name:
                table.add_row(finding.what, finding.found, finding.wrong)
    Console(highlight=False).print(table)


def print_json(found: list[Finding]) -> None:
    print(json.dumps([asdict(finding) for finding in found], indent=2))
