"""Augmentation of whole batches of uint8 images on their device. Random draws are passed in."""
