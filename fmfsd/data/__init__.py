"""Data pipeline: data sets are prepared as shards (without torch), and shards are loaded as augmented batches."""
