"""How a node's agent is reached."""
