"""Confusion section: which classes the deepest head confuses."""

from collections.abc import Sequence

from fmfsd.report.html.markup import Html, join_markup
from fmfsd.report.html.png import heatmap
from fmfsd.report.html.tables import collapsible, matrix, paragraphs, table
from fmfsd.report.read_run import Content

MAX_PAIRS = 20
MAX_TABLE_CLASSES = 20
"""Most classes of a matrix with numbers. A larger one is an image, with the numbers in a table below."""

Counts = Sequence[Sequence[int]]


def confusion_section(evaluation: Content, classes: Sequence[str]) -> Html:
    """Return the confusion matrix, the most confused pairs, and the predictions of each class."""
    counts: Counts = evaluation.get("confusion") or ()
    if not counts:
        return Html("")
    names = [classes[number] if number < len(classes) else f"class {number}" for number in range(len(counts))]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    full = _matrix_table(names, counts, shares) if len(names) <= MAX_TABLE_CLASSES else _matrix_image(shares)
    return join_markup(
        full, _most_confused(names, counts, shares), collapsible("Each class", _by_class(names, counts, shares))
    )


def _matrix_table(names: Sequence[str], counts: Counts, shares: Sequence[Sequence[float]]) -> Html:
    text = "Rows are true classes, columns predictions of the deepest head; darker: a larger share of the row."
    return join_markup(paragraphs(text), matrix("class \\ prediction", names, counts, shares))


def _matrix_image(shares: Sequence[Sequence[float]]) -> Html:
    """Return the matrix as an image of square roots: else confusions of a few percent would be invisible."""
    text = (
        "Rows are true classes, columns predictions of the deepest head, both in the order of the last table. The "
        "lightness is the square root of the share of a row."
    )
    alt = f"Confusion matrix of {len(shares)} classes; the tables below contain the numbers"
    roots = [[share**0.5 for share in row] for row in shares]
    return join_markup(paragraphs(text), heatmap(roots, alt, low=0.0, high=1.0, kind="matrix"))


def _most_confused(names: Sequence[str], counts: Counts, shares: Sequence[Sequence[float]]) -> Html:
    pairs = sorted(
        ((counts[one][other] + counts[other][one], one, other) for one in range(len(counts)) for other in range(one)),
        reverse=True,
    )[:MAX_PAIRS]
    rows = [
        (names[one], names[other], str(both), f"{100 * shares[one][other]:.1f} %", f"{100 * shares[other][one]:.1f} %")
        for both, one, other in pairs
        if both
    ]
    header = ("class", "and", "confused", "first as second", "second as first")
    return table(header, rows) if rows else paragraphs("No class is confused with another.")


def _by_class(names: Sequence[str], counts: Counts, shares: Sequence[Sequence[float]]) -> Html:
    rows = [
        (names[number], f"{100 * shares[number][number]:.2f} %", str(sum(row)), _predictions(names, row, number))
        for number, row in enumerate(counts)
    ]
    return table(("class", "top-1", "samples", "predicted as"), rows)


def _predictions(names: Sequence[str], row: Sequence[int], label: int) -> str:
    """Return the wrong predictions and their counts, most frequent first."""
    others = sorted(
        ((count, names[other]) for other, count in enumerate(row) if count and other != label), reverse=True
    )
    return ", ".join(f"{name} {count}" for count, name in others)
