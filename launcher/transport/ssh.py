"""A node's agent on another machine, reached by OpenSSH with the user's own config."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from fmfsd.errors import ConfigError, Problem
from launcher.config.environment import IMPORTING
from launcher.config.launch_config import Host
from launcher.transport.agent_client import AGENT

OPTIONS = {
    "IgnoreUnknown": "*",  # must be first: older versions of ssh do not know all of these
    "BatchMode": "yes",  # a password prompt in the midst of a launch is seen by nobody
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
"""These override the user's config, which is made for interactive sessions."""
_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_:\[][A-Za-z0-9_.:%\[\]-]*")
_LINE = re.compile(r"(?P<name>\S+)(?:\s+slots\s*=\s*(?P<slots>[1-9][0-9]{0,4}))?")


def command(
    host: str, environment: Mapping[str, str], *, deadline_s: float, agent: tuple[str, ...] = AGENT
) -> tuple[str, ...]:
    """What starts an agent on `host`, with nothing of `environment` but what decides where Python finds modules.

    All that workers need of it comes later through the pipe, where no list of processes shows it.
    """
    options = [part for name, value in OPTIONS.items() for part in ("-o", f"{name}={value}")]
    folders = [os.path.abspath(folder) for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]
    absolute = {**environment, "PYTHONPATH": os.pathsep.join(folders)}
    modules = [f"{name}={absolute[name]}" for name in IMPORTING if absolute.get(name)]
    words = ("exec", "env", *modules, *agent, "--deadline", f"{deadline_s:g}")
    return ("ssh", *options, "--", host, shlex.join(words))


def parse_hosts(text: str | None, file: Path | None) -> tuple[Host, ...]:
    """Of `--hosts a,b` or `--hostfile FILE`, whose lines are `host slots=N`. ConfigError with all that is wrong."""
    if text is not None and file is not None:
        raise ConfigError("--hosts, --hostfile: say the hosts once")
    if file is not None:
        return _checked(_of_file(file))
    return _checked([("--hosts", Host(name.strip())) for name in text.split(",")]) if text is not None else ()


def _of_file(file: Path) -> list[tuple[str, Host]]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(f"--hostfile {file}", f"can't be read: {error}")]) from error
    hosts, wrong = [], []
    for number, line in enumerate(lines, 1):
        words, place = line.partition("#")[0].strip(), f"{file}:{number}"
        match = _LINE.fullmatch(words)
        if words and match is None:
            wrong.append(Problem(place, f"expected `host` or `host slots=N`, found {words!a}"))
        elif match is not None:
            hosts.append((place, Host(match["name"], int(match["slots"]) if match["slots"] else None)))
    if wrong or not hosts:
        raise ConfigError(wrong or [Problem(f"--hostfile {file}", "names no host")])
    return hosts


def _checked(found: list[tuple[str, Host]]) -> tuple[Host, ...]:
    """No name that ssh would take for an option, and none twice: each gets one agent."""
    names = [host.name for _, host in found]
    wrong = [
        Problem(place, f"{host.name!a} is no host's name") for place, host in found if not _NAME.fullmatch(host.name)
    ]
    twice = [
        Problem(place, f"{name} stands there twice")
        for (place, host), name in zip(found, names, strict=True)
        if names.count(name) > 1
    ]
    if wrong or twice:
        raise ConfigError([*wrong, *twice[:1]])
    return tuple(host for _, host in found)
