"""`python -m fmfsd` is `fmfsd`."""

from fmfsd.cli import main

if __name__ == "__main__":
    main()
