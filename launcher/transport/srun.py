"""A node's agent as a step of a Slurm allocation."""

from launcher.transport.agent_client import AGENT

OF_THE_JOB = (
    *("SLURM_CPUS_PER_TASK", "SLURM_CPUS_PER_GPU", "SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU"),
    *("SLURM_TRES_PER_TASK", "SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_DISTRIBUTION", "SLURM_HINT"),
)
"""What srun would take for a second word on what its options say; from Slurm 23.11 on it ends if the two differ."""


def command(
    host: str, *, cores: int, deadline_s: float, agent: tuple[str, ...] = AGENT, options: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """What starts an agent on the allocation's node `host`. `options`: further ones of srun.

    The step asks for no GPUs, which gives it all that the job has there: a count would be wrong where the job's GPUs
    have a type. `srun` of Slurm 22.05 to 23.02 does not take the job's --cpus-per-task.
    """
    own = {
        "--nodes": "1",
        "--ntasks": "1",
        "--nodelist": host,
        "--cpus-per-task": str(cores),
        "--kill-on-bad-exit": "1",
        "--export": "ALL",
    }
    flat = [f"{name}={value}" for name, value in own.items()]
    without = [part for name in OF_THE_JOB for part in ("-u", name)]
    return ("env", *without, "srun", "--overlap", "--quiet", *flat, *options, *agent, "--deadline", f"{deadline_s:g}")
