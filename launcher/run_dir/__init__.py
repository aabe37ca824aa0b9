"""What the launcher writes into and reads from a run directory: lock, manifest, batch jobs, logs, status."""
