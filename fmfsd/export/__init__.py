"""Export of trained networks for inference: `fmfsd export` writes files, `fmfsd.load` reads them and runs."""
