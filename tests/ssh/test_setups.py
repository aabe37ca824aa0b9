"""Unusual setups of users and hosts: ssh configs, shells that print, sshds with limits, IPv6-only networks."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from launcher.agent.available_resources import Resources
from launcher.check import host_checks
from launcher.config.launch_config import LaunchConfig
from launcher.resources.host_probe import HostProbe, query_hosts
from launcher.resources.site import Site
from launcher.transport import connect_with_retry
from tests.helpers.cluster import Cluster
from tests.helpers.processes import wait_until
from tests.ssh.conftest import ssh_config
from tests.ssh.test_ssh import nothing_is_left_on_hosts as nothing_is_left_on_hosts

SSHD_PORT = 2222
FOR_INTERACTIVE_USE = """
  RemoteCommand exec tmux new-session
  RequestTTY force
  SessionType none
  StdinNull yes
  ForkAfterAuthentication yes
  LocalForward 127.0.0.1:{port} localhost:22
  ExitOnForwardFailure yes
  PermitLocalCommand yes
  LocalCommand echo connected
  ControlMaster auto
  ControlPath {folder}/control-%C
  ControlPersist 60
  LogLevel QUIET
"""


def run_probe(names: Sequence[str]) -> HostProbe:
    site = Site(Resources(cores=1), "ssh", tuple(names))
    return query_hosts(names, partial(site.start_agent, environment={}))


@contextmanager
def further_sshd(hosts: Cluster, **options: str) -> Iterator[None]:
    """Run another sshd on n1, at SSHD_PORT, with changed options."""
    config, pid = hosts.folder / "ssh" / "further_sshd_config", hosts.folder / "run" / "further-sshd"
    changed = {"Port": str(SSHD_PORT), "PidFile": str(pid), **options}
    usual = (hosts.folder / "ssh" / "sshd_config").read_text().splitlines()
    others = [line for line in usual if line.split()[0] not in changed]
    config.write_text("\n".join([*(f"{name} {value}" for name, value in changed.items()), *others, ""]))
    hosts.run_on("n1", "/usr/sbin/sshd", "-f", str(config))
    wait_until(pid.exists, "sshd to listen")
    try:
        yield
    finally:
        hosts.run_on("n1", "kill", pid.read_text().strip())


def test_a_config_for_interactive_sessions_and_a_shell_that_prints_do_no_harm(
    hosts: Cluster, address: str, path_with_config: Path, tmp_path: Path
) -> None:
    """The shell's output has no newline, the forwarded port is in use, and no connection outlives the probe."""
    (tmp_path / "rc").write_text("printf '\\033]0;n1\\007Welcome to n1. '\n")
    sshd = further_sshd(hosts, SetEnv=f"BASH_ENV={tmp_path / 'rc'}")
    with socket.create_server(("localhost", 0)) as busy, sshd:
        section = FOR_INTERACTIVE_USE.format(port=busy.getsockname()[1], folder=hosts.folder)
        path_with_config.write_text(ssh_config(hosts, f"Host me\n  HostName {address}\n  Port {SSHD_PORT}", section))
        result = run_probe(["me"])
    assert (result.failures, list(result.answers)) == ({}, ["me"])
    assert not list(hosts.folder.glob("control-*"))


@pytest.mark.fault("F60")
def test_hosts_behind_an_sshd_that_accepts_four_logins_at_a_time_all_answer(
    hosts: Cluster, address: str, path_with_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect_with_retry, "RETRY_DELAY_S", 0.1)
    names = [f"host{number}" for number in range(10)]
    path_with_config.write_text(ssh_config(hosts, f"Host host*\n  HostName {address}\n  Port {SSHD_PORT}"))
    with further_sshd(hosts, MaxStartups="4:100:4"):
        result = run_probe(names)
    assert (result.failures, list(result.answers)) == ({}, names)


def test_an_sshd_that_refuses_every_connection_is_reported_with_its_setting(
    hosts: Cluster, address: str, path_with_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect_with_retry, "RETRY_DELAY_S", 0.01)
    path_with_config.write_text(ssh_config(hosts, f"Host me\n  HostName {address}\n  Port {SSHD_PORT}"))
    with further_sshd(hosts, MaxStartups="1:100:1"), socket.create_connection((address, SSHD_PORT)) as waiting:
        assert waiting.recv(3) == b"SSH"
        result = run_probe(["me"])
    assert "limits simultaneous connections: raise MaxStartups" in result.failures["me"]


def test_a_host_with_ipv6_only_is_refused_with_the_reason(hosts: Cluster, address: str, path_with_config: Path) -> None:
    network, bridge = address.rpartition(".")[0], hosts.run_script("bridge").strip()
    path_with_config.write_text(ssh_config(hosts, "Host me\n  HostName fd00:213::2"))
    add_here = ("ip", "-6", "addr", "add", "fd00:213::254/64", "dev", bridge, "nodad")
    hosts.run_script("run", *add_here)
    hosts.run_on("n2", "ip", "-6", "addr", "add", "fd00:213::2/64", "dev", "eth0", "nodad")
    hosts.run_on("n2", "ip", "-4", "addr", "flush", "dev", "eth0")
    try:
        result = run_probe(["me"])
    finally:
        hosts.run_on("n2", "ip", "addr", "add", f"{network}.2/24", "dev", "eth0")
        hosts.run_on("n2", "ip", "route", "add", "default", "via", f"{network}.254")
        hosts.run_on("n2", "ip", "-6", "addr", "del", "fd00:213::2/64", "dev", "eth0")
        hosts.run_script("run", "ip", "-6", "addr", "del", "fd00:213::254/64", "dev", bridge)
    assert result.failures == {}
    (problem,) = map(str, host_checks.check_hosts(LaunchConfig(nodes=2), result))
    assert problem.startswith("me: has no IPv4 address except loopback's")
