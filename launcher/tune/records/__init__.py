"""The ledger of a sweep, the history of its trials, and the settings that it was started with."""
