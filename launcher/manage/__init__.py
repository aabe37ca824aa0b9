"""Commands for an existing run, from any host that can access its folder: status, logs, stop, cancel, resume."""
