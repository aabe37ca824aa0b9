"""The command that starts a node's agent on another machine by OpenSSH with the user's config; parses host lists."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from fmfsd.errors import ConfigError, Problem
from launcher.config.environment import IMPORT_VARIABLES
from launcher.config.launch_config import Host
from launcher.transport.agent_client import AGENT_COMMAND

SSH_OPTIONS = {
    "IgnoreUnknown": "*",  # must be first: older versions of ssh do not know all of these
    "BatchMode": "yes",  # nobody would see a password prompt during a launch
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",  # QUIET would hide why a connection failed
    "RequestTTY": "no",
    "RemoteCommand": "none",
    "SessionType": "default",
    "StdinNull": "no",
    "ForkAfterAuthentication": "no",
    "ControlMaster": "no",  # an existing master is used; this connection must not outlive the launch as one
    "ClearAllForwardings": "yes",  # a port that is in use would end the connection (ExitOnForwardFailure)
    "ForwardX11": "no",
    "Tunnel": "no",
    "PermitLocalCommand": "no",  # its output would be mixed with the agent's messages
}
"""Options that override the user's config, which is made for interactive sessions."""
_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_:\[][A-Za-z0-9_.:%\[\]-]*")
_LINE = re.compile(r"(?P<name>\S+)(?:\s+slots\s*=\s*(?P<slots>[1-9][0-9]{0,4}))?")


def agent_command(
    host: str, environment: Mapping[str, str], *, deadline_s: float, agent: tuple[str, ...] = AGENT_COMMAND
) -> tuple[str, ...]:
    """Return the command that starts an agent on `host`.

    From `environment` it contains only the variables that decide where Python finds modules. Other variables reach the
    agent later through its stdin, where no process list shows them.
    """
    options = [part for name, value in SSH_OPTIONS.items() for part in ("-o", f"{name}={value}")]
    folders = [os.path.abspath(folder) for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]
    absolute = {**environment, "PYTHONPATH": os.pathsep.join(folders)}
    modules = [f"{name}={absolute[name]}" for name in IMPORT_VARIABLES if absolute.get(name)]
    remote_command = ("exec", "env", *modules, *agent, "--deadline", f"{deadline_s:g}")
    return ("ssh", *options, "--", host, shlex.join(remote_command))


def parse_hosts(text: str | None, file: Path | None) -> tuple[Host, ...]:
    """Parse `--hosts a,b` or `--hostfile FILE`, whose lines are `host slots=N`. ConfigError lists all problems."""
    if text is not None and file is not None:
        raise ConfigError("--hosts, --hostfile: both given: leave one out")
    if file is not None:
        return _require_valid_hosts(_read_hostfile(file))
    return (
        _require_valid_hosts([("--hosts", Host(name.strip())) for name in text.split(",")]) if text is not None else ()
    )


def _read_hostfile(file: Path) -> list[tuple[str, Host]]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(f"--hostfile {file}", f"can't be read: {error}")]) from error
    hosts, problems = [], []
    for number, line in enumerate(lines, 1):
        text, location = line.partition("#")[0].strip(), f"{file}:{number}"
        match = _LINE.fullmatch(text)
        if text and match is None:
            problems.append(Problem(location, f"expected `host` or `host slots=N`, found {text!a}"))
        elif match is not None:
            hosts.append((location, Host(match["name"], int(match["slots"]) if match["slots"] else None)))
    if problems or not hosts:
        raise ConfigError(problems or [Problem(f"--hostfile {file}", "names no host")])
    return hosts


def _require_valid_hosts(located_hosts: list[tuple[str, Host]]) -> tuple[Host, ...]:
    """Require valid names that ssh can't take for options, and no duplicates: each host gets one agent."""
    names = [host.name for _, host in located_hosts]
    invalid = [
        Problem(location, f"{host.name!a} is not a valid host name")
        for location, host in located_hosts
        if not _NAME.fullmatch(host.name)
    ]
    duplicates = [
        Problem(location, f"{name} is listed twice")
        for (location, host), name in zip(located_hosts, names, strict=True)
        if names.count(name) > 1
    ]
    if invalid or duplicates:
        raise ConfigError([*invalid, *duplicates[:1]])
    return tuple(host for _, host in located_hosts)
