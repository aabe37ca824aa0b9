"""`fmfsd-launch drill`: real faults injected into short runs of a user's own config on the user's own machine."""

from launcher.diagnostics.drill.drill import run_drill
from launcher.diagnostics.drill.faults import parse_faults

__all__ = ["parse_faults", "run_drill"]
