"""Hyperparameter sweeps: search spaces, samplers, the driver with Ray Tune, and results."""
