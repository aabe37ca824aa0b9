"""The run directory: file names, metrics, heartbeats, training positions, profile records. Needs no torch."""
