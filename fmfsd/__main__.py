"""`python -m fmfsd` is `fmfsd`."""

from fmfsd.entry_points import main

if __name__ == "__main__":
    main()
