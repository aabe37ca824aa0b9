"""Slurm's own commands, and what they say."""

import subprocess

from fmfsd.errors import CheckError

ANSWER_S = 60.0


def hostnames(nodelist: str) -> tuple[str, ...]:
    """The names that `nodelist`, as n[1-3,7], stands for. CheckError if Slurm does not say."""
    return tuple(_said("scontrol", "show", "hostnames", nodelist).split())


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
    except FileNotFoundError as error:
        raise CheckError(f"{command[0]}: not found: is this machine a part of a Slurm cluster?") from error
    except subprocess.TimeoutExpired as error:
        raise CheckError(f"{' '.join(command)}: no answer in {ANSWER_S:g} s") from error
    if done.returncode:
        raise CheckError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
