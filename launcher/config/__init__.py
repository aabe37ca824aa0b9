"""Options of launches, Slurm jobs and sweeps as values, read from the command line and the environment."""
