"""CIFAR-10 and CIFAR-100 from their official files or from Parquet. Needs no torch."""
