"""A prepared data set on disk: the index, the shard files, and their verification. Needs no torch."""
