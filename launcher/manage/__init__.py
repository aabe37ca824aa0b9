"""What is done to a run that exists, from any host that sees its folder."""
