"""Plan of a launch as a value: every command, variable and folder, with placeholders for values known later."""
