"""Display of a sweep: the live table, the remaining time, and formatting of values."""
