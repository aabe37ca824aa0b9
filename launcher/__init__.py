"""Everything outside the worker processes: planning, checking, starting, supervising. Nothing here imports torch."""
