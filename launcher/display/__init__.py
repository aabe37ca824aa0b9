"""Display of a running launch: progress bar, log lines, warnings about stragglers."""
