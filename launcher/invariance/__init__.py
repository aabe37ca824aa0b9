"""`fmfsd-launch --verify-invariance`: a user's own config by several numbers of workers, which are to train alike."""

from launcher.invariance.verification import verify_invariance

__all__ = ["verify_invariance"]
