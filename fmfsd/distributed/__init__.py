"""Data-parallel workers: world, collectives, synchronised batch norm, preflight, CPU affinity."""
