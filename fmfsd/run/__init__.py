"""A run directory: its file names, metrics, heartbeats and training positions. Needs no torch."""
