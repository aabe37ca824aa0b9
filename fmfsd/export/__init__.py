"""Trained networks for serving: `fmfsd export` writes them, `fmfsd.load` reads them."""
