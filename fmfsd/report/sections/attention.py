"""Attention section: masks and fused maps of a few images, over training, and by class."""

from collections.abc import Iterator, Sequence

from fmfsd.report.html.markup import Html, element, join_markup
from fmfsd.report.html.png import Grid, heatmap, inline_image, value_range
from fmfsd.report.html.tables import collapsible, paragraphs, table
from fmfsd.report.read_run import Content, RunFiles

OVER_TRAINING = 4
CLASSES = 12


def attention_section(run: RunFiles, classes: Sequence[str]) -> Html:
    """Return the section, empty for a run without attention maps."""
    if not run.attention_maps:
        return Html("")
    return join_markup(
        paragraphs(_LEGEND),
        element(
            "h3", f"Images of the {run.pictures.get('split', 'test')} split after step {run.attention_maps[-1]['step']}"
        ),
        _images(run.attention_maps[-1], run.pictures, classes),
        element("h3", "Over training"),
        *_over_training(run.attention_maps, run.pictures),
        *_by_class(run, classes),
    )


_LEGEND = (
    "A mask holds the weight of each position of a branch's feature map, averaged over its groups; light is high. The "
    "masks are averaged, and the average is applied to every map. Fused is the fused map's mean absolute value over "
    "channels. "
    "Each column has its own scale; the numbers above it are its minimum and maximum."
)


def _images(maps: Content, pictures: Content, classes: Sequence[str]) -> Html:
    names = list(maps["names"])
    scales = [value_range([grids[number] for grids in maps["grids"]]) for number in range(len(names))]
    headers = [f"{name}\n{low:.3f} to {high:.3f}" for name, (low, high) in zip(names, scales, strict=True)]
    rows = []
    for number, grids in enumerate(maps["grids"]):
        label, predicted = (
            _class_name(classes, content[key][number]) for content, key in ((pictures, "labels"), (maps, "said"))
        )
        cells = _heatmaps(grids, names, scales, label)
        prediction = f"{predicted}\n{100 * maps['sure'][number]:.0f} %"
        rows.append([label, inline_image(pictures["png"][number], f"an image of {label}"), prediction, *cells])
    return table(("class", "image", "prediction of\ndeepest head", *headers), rows)


def _heatmaps(
    grids: Sequence[Grid], names: Sequence[str], scales: Sequence[tuple[float, float]], label: str
) -> list[Html]:
    each = zip(grids, names, scales, strict=True)
    return [heatmap(grid, f"{name} of {label}", low=low, high=high) for grid, name, (low, high) in each]


def _class_name(classes: Sequence[str], number: int) -> str:
    return classes[number] if number < len(classes) else f"class {number}"


def _over_training(history: Sequence[Content], pictures: Content) -> Iterator[Html]:
    """Yield masks of the first images over training: the averaged (else the first) one, the others collapsed."""
    names = list(history[-1]["names"])
    first = names.index("averaged") if "averaged" in names else 0
    yield paragraphs(f"The {names[first]} mask of the first images above, each step on its own scale.")
    yield _mask_history(history, pictures, first)
    for number, name in enumerate(names):
        if number != first:
            yield collapsible(name, _mask_history(history, pictures, number))


def _mask_history(history: Sequence[Content], pictures: Content, number: int) -> Html:
    images = [inline_image(png, f"image {index + 1}") for index, png in enumerate(pictures["png"][:OVER_TRAINING])]
    rows = [["image", *images, ""]]
    for maps in history:
        grids = [each[number] for each in maps["grids"][:OVER_TRAINING]]
        low, high = value_range(grids)
        description = f"{maps['names'][number]} after step {maps['step']}"
        cells = [heatmap(grid, description, low=low, high=high) for grid in grids]
        rows.append([str(maps["step"]), *cells, f"{low:.3f} to {high:.3f}"])
    return table(("step", *(f"image {index + 1}" for index in range(len(images))), "scale"), rows)


def _by_class(run: RunFiles, classes: Sequence[str]) -> Iterator[Html]:
    """Yield the means over a split's images by class: the first classes, the others collapsed."""
    split = next((split for split in ("test", "valid") if run.evaluations.get(split, {}).get("attention")), None)
    if split is None:
        return
    maps = run.evaluations[split]["attention"]
    names, grids = list(maps["names"]), maps["grids"]
    scales = [value_range([each[number] for each in grids]) for number in range(len(names))]
    rows = [
        [_class_name(classes, number), *_heatmaps(each, names, scales, _class_name(classes, number))]
        for number, each in enumerate(grids)
    ]
    header = ("class", *(f"{name}\n{low:.3f} to {high:.3f}" for name, (low, high) in zip(names, scales, strict=True)))
    yield element("h3", f"By class, means over the {split} split")
    yield table(header, rows[:CLASSES])
    if rows[CLASSES:]:
        yield collapsible(f"The other {len(rows) - CLASSES} classes", table(header, rows[CLASSES:]))
