"""Probes this machine and the hosts, and shows the findings."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial

from fmfsd.errors import CheckError
from launcher.agent.describe_machine import probe_machine
from launcher.check import host_checks, software_checks
from launcher.config.launch_config import LaunchConfig
from launcher.diagnostics.doctor import environment_findings as surroundings
from launcher.diagnostics.doctor import machine_findings
from launcher.diagnostics.doctor.finding import Finding
from launcher.resources.host_probe import THIS_MACHINE, HostProbe, query_hosts, with_reference
from launcher.resources.site import Site


def examine(site: Site, *, environment: Mapping[str, str], cwd: str, as_json: bool) -> int:
    """Print all findings. Return the exit code: 0, or that of a failed check if something is wrong."""
    here = probe_machine({"condition": cwd}, environment)
    start_agent = partial(site.start_agent, environment=environment)
    hosts = query_hosts(site.hosts_to_probe, start_agent, condition=cwd)
    findings = [
        *machine_findings.findings(THIS_MACHINE, here),
        *(() if site.is_wrapped else _software()),
        *surroundings.findings(environment, cwd=cwd),
    ]
    findings += [
        finding for host, answer in hosts.answers.items() for finding in machine_findings.findings(host, answer)
    ]
    findings += _compare_hosts(with_reference(site, HostProbe(hosts.answers, hosts.failures), here))
    print_json(findings) if as_json else show(findings)
    return CheckError.exit_code if any(finding.wrong for finding in findings) else 0


def _software() -> Iterator[Finding]:
    for problem in software_checks.check_software():
        yield Finding(THIS_MACHINE, problem.where, "", problem.message)


def _compare_hosts(hosts: HostProbe) -> Iterator[Finding]:
    """Yield differences between hosts."""
    for problem in host_checks.check_hosts(LaunchConfig(nodes=max(1, len(hosts.answers))), hosts):
        yield Finding("hosts", problem.where, "", problem.message)
    for text in host_checks.warn_about_hosts(hosts):
        yield Finding("hosts", "note", text)


def show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "found", "how to fix it")
    for name in dict.fromkeys(finding.machine for finding in findings):
        table.add_section()
        table.add_row(f"[bold]{name}[/bold]")
        for finding in findings:
            if finding.machine == name:
                table.add_row(finding.what, finding.found, finding.wrong)
    Console(highlight=False).print(table)


def print_json(findings: list[Finding]) -> None:
    print(json.dumps([asdict(finding) for finding in findings], indent=2))
