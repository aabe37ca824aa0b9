# shellcheck shell=bash
# What is special about a site: sourced by the batch scripts before they start anything.
# Put `module load ...`, `source .../venv/bin/activate` or exports such as FMFSD_DATA here.
