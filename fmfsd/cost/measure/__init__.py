"""Measures what a config costs by a forward pass on fake tensors. `fmfsd probe` runs it in a short process."""
