"""Which configuration a search tries next: random, grid, or by Optuna."""
