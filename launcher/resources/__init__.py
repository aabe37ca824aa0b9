"""Resources that a launch can use: the site it runs on, host probes, Slurm allocations, and the cost of a config."""
