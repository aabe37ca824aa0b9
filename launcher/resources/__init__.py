"""Where a launch can run, and what is there: sites, hosts, Slurm allocations, the cost of a config."""
