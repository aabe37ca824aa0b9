"""A worker's batches: its shards in memory or streamed from their files, at any training position."""
