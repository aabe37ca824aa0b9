"""The machine and its file systems: atomic files, locks, caches, compilers, CPU cores, memory, parent death."""
