"""Training engines: forward, backward and optimizer step with PyTorch (DDP) or DeepSpeed (ZeRO)."""
