"""Image folders: finding the images of each split, checking file types, and decoding. Needs no torch."""
