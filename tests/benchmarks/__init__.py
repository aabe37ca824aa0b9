"""Measurements, each `python -m tests.benchmarks.<name>`: one Markdown table, made side by side in one run."""
