"""Image folders: which files belong to a split, what they contain, and how they are decoded. Needs no torch."""
