"""Checkpoints: written atomically, verified before use, without pickles."""

from fmfsd.checkpoint.checkpoint import Saved
from fmfsd.checkpoint.manager import Checkpoints
from fmfsd.checkpoint.store import CheckpointFolder

__all__ = ["CheckpointFolder", "Checkpoints", "Saved"]
