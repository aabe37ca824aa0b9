"""Everything that can be known to be wrong with a launch before a process is started. All problems at once."""
