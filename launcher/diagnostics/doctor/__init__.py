"""`fmfsd-launch doctor`: what machines and clusters offer, and how to fix what is wrong."""

from launcher.diagnostics.doctor.examine import examine

__all__ = ["examine"]
