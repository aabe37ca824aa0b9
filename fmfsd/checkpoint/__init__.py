"""Checkpoints: written atomically, verified before use, without pickles."""

from fmfsd.checkpoint.checkpoint import Checkpoint
from fmfsd.checkpoint.manager import CheckpointManager
from fmfsd.checkpoint.store import CheckpointStore

__all__ = ["Checkpoint", "CheckpointManager", "CheckpointStore"]
