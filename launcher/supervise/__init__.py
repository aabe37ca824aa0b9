"""Carries out a plan to its end: coordinator, attempts, hang detection, restarts, outcome."""
