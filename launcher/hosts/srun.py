"""A node's agent as a step of a Slurm allocation."""

from launcher.hosts.agents import AGENT


def command(host: str, *, cores: int, deadline_s: float) -> tuple[str, ...]:
    """What starts an agent on the allocation's node `host`.

    The step asks for no GPUs, which gives it all that the job has there: a count would be wrong where the job's GPUs
    have a type. `srun` of Slurm 22.05 to 23.02 does not take the job's --cpus-per-task.
    """
    options = {
        "--nodes": "1",
        "--ntasks": "1",
        "--nodelist": host,
        "--cpus-per-task": str(cores),
        "--kill-on-bad-exit": "1",
        "--export": "ALL",
    }
    flat = [f"{name}={value}" for name, value in options.items()]
    return ("srun", "--overlap", "--quiet", *flat, *AGENT, "--deadline", f"{deadline_s:g}")
