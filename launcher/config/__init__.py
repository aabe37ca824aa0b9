"""The options of launches, Slurm jobs and sweeps as values, read from a command line and an environment."""
