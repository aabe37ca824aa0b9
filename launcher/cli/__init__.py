"""The commands `fmfsd-launch` and `fmfsd-tune`: parse, call one function, return its exit code."""
