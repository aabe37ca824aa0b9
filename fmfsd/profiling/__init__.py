"""Profiling: the time of each part of a training step, measured with torch.profiler around the parts of a worker."""
