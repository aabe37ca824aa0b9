"""What a run's fusion attends to: masks and fused maps of a few images, over the training, and by class."""

from collections.abc import Iterator, Sequence

from fmfsd.report.html.markup import Html, element, joined
from fmfsd.report.html.png import Grid, ends, heat, picture
from fmfsd.report.html.tables import folded, paragraphs, table
from fmfsd.report.read_run import Content, RunFiles

OVER_TRAINING = 4
CLASSES = 12


def attention(run: RunFiles, classes: Sequence[str]) -> Html:
    if not run.looks:
        return Html("")
    return joined(
        paragraphs(_HOW),
        element("h3", f"Images of the {run.pictures.get('split', 'test')} split after step {run.looks[-1]['step']}"),
        _images(run.looks[-1], run.pictures, classes),
        element("h3", "Over training"),
        *_over_training(run.looks, run.pictures),
        *_by_class(run, classes),
    )


_HOW = (
    "A mask says how much each position of a branch's map counts, a mean over its groups: light is much. The masks are "
    "averaged, and the average is applied to every map. Fused is the fused map's mean absolute value over channels. "
    "Each column has its own scale, which the numbers over it tell."
)


def _images(look: Content, pictures: Content, classes: Sequence[str]) -> Html:
    names = list(look["names"])
    scales = [ends([grids[number] for grids in look["grids"]]) for number in range(len(names))]
    shown = [f"{name}\n{low:.3f} to {high:.3f}" for name, (low, high) in zip(names, scales, strict=True)]
    rows = []
    for number, grids in enumerate(look["grids"]):
        of, said = (_called(classes, content[key][number]) for content, key in ((pictures, "labels"), (look, "said")))
        cells = _heats(grids, names, scales, of)
        told = f"{said}\n{100 * look['sure'][number]:.0f} %"
        rows.append([of, picture(pictures["png"][number], f"an image of {of}"), told, *cells])
    return table(("class", "image", "deepest\nhead says", *shown), rows)


def _heats(grids: Sequence[Grid], names: Sequence[str], scales: Sequence[tuple[float, float]], of: str) -> list[Html]:
    each = zip(grids, names, scales, strict=True)
    return [heat(grid, f"{name} of {of}", low=low, high=high) for grid, name, (low, high) in each]


def _called(classes: Sequence[str], number: int) -> str:
    return classes[number] if number < len(classes) else f"class {number}"


def _over_training(looks: Sequence[Content], pictures: Content) -> Iterator[Html]:
    """Of the first images; openly the averaged mask or, where there is none, the first one, the others on demand."""
    names = list(looks[-1]["names"])
    first = names.index("averaged") if "averaged" in names else 0
    yield paragraphs(f"The {names[first]} mask of the first images above, each step on its own scale.")
    yield _course(looks, pictures, first)
    for number, name in enumerate(names):
        if number != first:
            yield folded(name, _course(looks, pictures, number))


def _course(looks: Sequence[Content], pictures: Content, number: int) -> Html:
    images = [picture(png, f"image {place + 1}") for place, png in enumerate(pictures["png"][:OVER_TRAINING])]
    rows = [["image", *images, ""]]
    for look in looks:
        chosen = [grids[number] for grids in look["grids"][:OVER_TRAINING]]
        low, high = ends(chosen)
        told = f"{look['names'][number]} after step {look['step']}"
        cells = [heat(each, told, low=low, high=high) for each in chosen]
        rows.append([str(look["step"]), *cells, f"{low:.3f} to {high:.3f}"])
    return table(("step", *(f"image {place + 1}" for place in range(len(images))), "scale"), rows)


def _by_class(run: RunFiles, classes: Sequence[str]) -> Iterator[Html]:
    """Means over a split's images; the first classes openly, the others on demand."""
    split = next((split for split in ("test", "valid") if run.evaluations.get(split, {}).get("attention")), None)
    if split is None:
        return
    found = run.evaluations[split]["attention"]
    names, grids = list(found["names"]), found["grids"]
    scales = [ends([each[number] for each in grids]) for number in range(len(names))]
    rows = [
        [_called(classes, number), *_heats(each, names, scales, _called(classes, number))]
        for number, each in enumerate(grids)
    ]
    header = ("class", *(f"{name}\n{low:.3f} to {high:.3f}" for name, (low, high) in zip(names, scales, strict=True)))
    yield element("h3", f"By class, means over the {split} split")
    yield table(header, rows[:CLASSES])
    if rows[CLASSES:]:
        yield folded(f"The other {len(rows) - CLASSES} classes", table(header, rows[CLASSES:]))
