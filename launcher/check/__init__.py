"""Checks before any process starts: all problems of a launch that can be found in advance, reported together."""
