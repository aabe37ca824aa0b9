"""What the machine and its file systems offer: atomic files, locks, caches, cores, memory."""
