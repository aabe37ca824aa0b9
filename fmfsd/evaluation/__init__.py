"""Evaluation: accuracy of each head and of early exits, and the files that reports read."""
