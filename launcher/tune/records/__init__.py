"""The ledger of a sweep, the history of its trials, and its settings."""
