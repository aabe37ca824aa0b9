"""What runs on every node: it starts, watches and ends that node's processes, and tells of its machine."""
