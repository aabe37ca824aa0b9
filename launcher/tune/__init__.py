"""Searching: what may be searched, and (with Ray) the search."""
