"""Cost measurement: one forward pass on fake tensors. `fmfsd probe` runs it in a short process."""
