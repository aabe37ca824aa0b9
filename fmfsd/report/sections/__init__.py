"""Sections of a run's report, one module each."""
