"""`fmfsd-launch --drill`: real faults, done to short runs of a user's own config on the user's own machine."""

from launcher.diagnostics.drill.drill import Drill

__all__ = ["Drill"]
