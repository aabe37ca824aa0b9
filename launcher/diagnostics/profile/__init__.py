"""`fmfsd-launch profile`: where the time of a training step of a user's own config goes."""

from launcher.diagnostics.profile.profile_run import profile_run

__all__ = ["profile_run"]
