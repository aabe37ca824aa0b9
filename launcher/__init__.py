"""Everything outside a worker: deciding, checking, starting, watching. No torch anywhere."""
