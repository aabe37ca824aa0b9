"""A run's state on disk: whole or absent, verified before it is used, without pickles."""

from fmfsd.checkpoint.checkpoints import Checkpoints
from fmfsd.checkpoint.folder import CheckpointFolder
from fmfsd.checkpoint.saved import Saved

__all__ = ["CheckpointFolder", "Checkpoints", "Saved"]
