"""Search spaces: YAML to typed parameters, and what is wrong with them."""
