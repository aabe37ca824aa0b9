"""Which classes the deepest head takes for one another."""

from collections.abc import Sequence

from fmfsd.report.html.markup import Html, joined
from fmfsd.report.html.png import heat
from fmfsd.report.html.tables import folded, matrix, paragraphs, table
from fmfsd.report.read_run import Content

MOST_PAIRS = 20
MOST_WRITTEN = 20
"""Classes; of more the matrix is a picture, and its numbers stand by class under it."""

Counts = Sequence[Sequence[int]]


def confusion(found: Content, classes: Sequence[str]) -> Html:
    """The whole matrix, the pairs that stand out, and all that each class is taken for."""
    counts: Counts = found.get("confusion") or ()
    if not counts:
        return Html("")
    names = [classes[number] if number < len(classes) else f"class {number}" for number in range(len(counts))]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    whole = _written(names, counts, shares) if len(names) <= MOST_WRITTEN else _picture(shares)
    return joined(whole, _most_confused(names, counts, shares), folded("Each class", _by_class(names, counts, shares)))


def _written(names: Sequence[str], counts: Counts, shares: Sequence[Sequence[float]]) -> Html:
    text = "Rows are classes, columns what the deepest head says; the darker, the larger a part of its row."
    return joined(paragraphs(text), matrix("class, and what is said", names, counts, shares))


def _picture(shares: Sequence[Sequence[float]]) -> Html:
    """By the square root, or confusions of a few in a hundred would not be seen beside the diagonal."""
    text = (
        "Rows are classes, columns what the deepest head says, both in the order of the last table; light is much, by "
        "the square root of the share of a row."
    )
    alt = f"Confusion matrix of {len(shares)} classes; the tables under it have its numbers"
    roots = [[share**0.5 for share in row] for row in shares]
    return joined(paragraphs(text), heat(roots, alt, low=0.0, high=1.0, kind="matrix"))


def _most_confused(names: Sequence[str], counts: Counts, shares: Sequence[Sequence[float]]) -> Html:
    pairs = sorted(
        ((counts[one][other] + counts[other][one], one, other) for one in range(len(counts)) for other in range(one)),
        reverse=True,
    )[:MOST_PAIRS]
    rows = [
        (names[one], names[other], str(both), f"{100 * shares[one][other]:.1f} %", f"{100 * shares[other][one]:.1f} %")
        for both, one, other in pairs
        if both
    ]
    header = ("class", "and", "confused", "first as second", "second as first")
    return table(header, rows) if rows else paragraphs("No class is taken for another.")


def _by_class(names: Sequence[str], counts: Counts, shares: Sequence[Sequence[float]]) -> Html:
    rows = [
        (names[number], f"{100 * shares[number][number]:.2f} %", str(sum(row)), _taken_for(names, row, number))
        for number, row in enumerate(counts)
    ]
    return table(("class", "top-1", "samples", "taken for"), rows)


def _taken_for(names: Sequence[str], row: Sequence[int], itself: int) -> str:
    """All others, the most frequent first."""
    others = sorted(
        ((count, names[other]) for other, count in enumerate(row) if count and other != itself), reverse=True
    )
    return ", ".join(f"{name} {count}" for count, name in others)
