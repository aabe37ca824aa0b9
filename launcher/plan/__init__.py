"""The plan of a launch as a value: every command, variable and folder, with placeholders for later values."""
