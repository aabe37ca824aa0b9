"""`fmfsd-launch verify`: a user's own config trained by several numbers of workers, and how far the results differ."""

from launcher.diagnostics.verify.verification import verify_invariance
from launcher.diagnostics.verify.worker_counts import parse_worker_counts

__all__ = ["parse_worker_counts", "verify_invariance"]
