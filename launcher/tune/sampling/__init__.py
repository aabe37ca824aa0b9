"""Samplers: random, grid, and Optuna's."""
