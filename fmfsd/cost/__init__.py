"""What a config costs: parameters, multiply-adds and memory as values (`estimate`), and their cache. Needs no torch."""
