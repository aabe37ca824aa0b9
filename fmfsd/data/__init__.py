"""Images: from official files to shards, and from shards to augmented batches. Preparing needs no torch."""
