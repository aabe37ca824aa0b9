"""Data loading: a worker's shards, in memory or streamed from files, and its batches at any training position."""
