"""`fmfsd-launch profile`: the time of each part of a training step of a user's own config."""

from launcher.diagnostics.profile.profile_run import profile_run

__all__ = ["profile_run"]
