"""The command that starts a node's agent as a step of a Slurm allocation."""

from launcher.transport.agent_client import AGENT_COMMAND

JOB_VARIABLES = (
    *("SLURM_CPUS_PER_TASK", "SLURM_CPUS_PER_GPU", "SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU"),
    *("SLURM_TRES_PER_TASK", "SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_DISTRIBUTION", "SLURM_HINT"),
)
"""Variables of the job that srun would read as options; from Slurm 23.11 on it fails if they contradict its options."""


def agent_command(
    host: str, *, cores: int, deadline_s: float, agent: tuple[str, ...] = AGENT_COMMAND, options: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return the command that starts an agent on the allocation's node `host`. `options`: further srun options.

    The step requests no GPUs, so it gets all GPUs that the job has on the node; a count would fail where the job's GPUs
    have a type. The number of cores is explicit because `srun` of Slurm 22.05 to 23.02 ignores the job's
    --cpus-per-task.
    """
    step_options = {
        "--nodes": "1",
        "--ntasks": "1",
        "--nodelist": host,
        "--cpus-per-task": str(cores),
        "--kill-on-bad-exit": "1",
        "--export": "ALL",
    }
    flags = [f"{name}={value}" for name, value in step_options.items()]
    unset = [part for name in JOB_VARIABLES for part in ("-u", name)]
    return ("env", *unset, "srun", "--overlap", "--quiet", *flags, *options, *agent, "--deadline", f"{deadline_s:g}")
