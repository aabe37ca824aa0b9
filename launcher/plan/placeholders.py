"""Placeholders in a plan for values that are known only when an attempt starts.

Each is a complete argument, so it can't be confused with a user's path.
"""

RENDEZVOUS, INIT_METHOD, ATTEMPT, RUN_ID, SCRATCH = "{rendezvous}", "{init_method}", "{attempt}", "{id}", "{scratch}"
ADDRESS, PORT, INTERFACE = "{address}", "{port}", "{interface}"
NCCL_INTERFACE = "{nccl_interface}"
"""The interface in NCCL's notation: `=eth1`, because `eth1` would also match eth10. Gloo takes exact names."""
