"""`fmfsd-launch --profile`: where the steps of a user's own config go."""

from launcher.diagnostics.profile.profile_run import profile_run

__all__ = ["profile_run"]
