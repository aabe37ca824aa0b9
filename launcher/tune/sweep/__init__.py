"""The state of a sweep: drawing trials, their specifications, and the disk budget."""
