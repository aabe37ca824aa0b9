"""Who owns the optimizer step: plain PyTorch or DDP."""
