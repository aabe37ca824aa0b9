"""Accuracy of every head and of early exits, and the files that reports show."""
