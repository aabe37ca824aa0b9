"""A run's state on disk: whole or absent, verified before it is used, without pickles."""

from fmfsd.checkpoint.checkpoint import Saved
from fmfsd.checkpoint.manager import Checkpoints
from fmfsd.checkpoint.store import CheckpointFolder

__all__ = ["CheckpointFolder", "Checkpoints", "Saved"]
