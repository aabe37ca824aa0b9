# shellcheck shell=bash
# Site-specific setup, sourced by the batch scripts before they start anything. A command that fails ends the job.
# Put `module load ...`, `source .../venv/bin/activate` or exports such as FMFSD_DATA here.
