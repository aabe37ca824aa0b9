"""Cost estimates of a config: parameters, multiply-adds and memory (`estimate`), and their cache. No torch."""
