"""Transport: how a node's agent is started and reached (local process, ssh, srun), and Slurm's commands."""
