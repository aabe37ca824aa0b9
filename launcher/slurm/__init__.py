"""Batch jobs of Slurm's: what is submitted, and what a launch inside of one does."""
