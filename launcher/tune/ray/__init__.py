"""The Ray cluster of a sweep: starting and joining it, probing it, and node agents inside it."""
