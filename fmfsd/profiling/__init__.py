"""Where a training step goes: torch's profiler around a worker's parts, none of which knows of it."""

from fmfsd.profiling.profile import NoProfile, Profile, WrittenProfile

__all__ = ["NoProfile", "Profile", "WrittenProfile"]
