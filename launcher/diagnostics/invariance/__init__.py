"""`fmfsd-launch --verify-invariance`: a user's own config by several numbers of workers, which are to train alike."""

from launcher.diagnostics.invariance.verify import verify_invariance

__all__ = ["verify_invariance"]
