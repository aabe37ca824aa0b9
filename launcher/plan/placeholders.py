"""Symbols in a plan for what is only known when an attempt starts. Each is a whole argument, so no path of a user's is
one."""

RENDEZVOUS, INIT_METHOD, ATTEMPT, RUN_ID, SCRATCH = "{rendezvous}", "{init_method}", "{attempt}", "{id}", "{scratch}"
ADDRESS, PORT, INTERFACE = "{address}", "{port}", "{interface}"
NCCL_INTERFACE = "{nccl_interface}"
"""The same interface as NCCL takes it: `=eth1`, as `eth1` would match eth10 too. Gloo takes whole names."""
