"""Short runs of a user's own config that test it: drill, verify, profile; and the doctor."""
