"""Benchmarks: each `python -m tests.benchmarks.<name>` prints Markdown tables of alternatives measured in one run."""
