"""Slurm batch jobs: sbatch options, submission, source snapshot, and following a job."""
