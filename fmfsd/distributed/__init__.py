"""Several workers as one: world, collectives, synchronised batch norm, preflight, CPU affinity."""
