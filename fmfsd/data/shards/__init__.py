"""Prepared data sets on disk: the index, the shard files, and their verification. Needs no torch."""
