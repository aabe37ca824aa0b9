"""Cost estimates of a config: parameters, multiply-adds and memory (`cost_report`), and their cache. No torch."""
