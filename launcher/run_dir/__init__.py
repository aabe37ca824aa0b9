"""Files in a run directory that the launcher writes or reads: lock, manifest, batch jobs, logs, status."""
