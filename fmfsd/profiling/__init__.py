"""Profiling: where the time of a training step goes, measured with torch.profiler around the parts of a worker."""
