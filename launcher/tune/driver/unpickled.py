"""Parts that Tune writes down with its own state, which nobody reads: the ledger is what a sweep goes on from."""


class Unkept:
    """Leaves nothing of itself where it is pickled."""

    def __getstate__(self) -> dict[str, object]:
        return {}
