"""A base class for parts that Tune pickles with its own state, which is not used: a sweep resumes from its ledger."""


class EmptyPickle:
    """Pickles as an empty object."""

    def __getstate__(self) -> dict[str, object]:
        return {}
