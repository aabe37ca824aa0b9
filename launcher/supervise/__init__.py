"""Supervision of a run: coordinator, attempts, rendezvous, hang detection, restarts, outcome."""
