"""Layouts of image folders: `ROOT/train/CLASS/**/*.png`, and test or val next to train; lists the images per split."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmfsd.config.names import FOLDER_LAYOUT
from fmfsd.data.image_files.find_images import SUFFIXES, ImageSearch, describe_dangling, is_dangling, is_folder
from fmfsd.errors import DataError, Problem

log = logging.getLogger(__name__)
SPLIT_NAMES = {"train": "train", "test": "test", "val": "valid", "valid": "valid", "validation": "valid"}
"""Split by folder name in lower case."""
ANNOTATIONS = "val_annotations.txt"
"""File in Tiny ImageNet's val folder: an image name and its class per line, tab-separated; images are in val/images."""
IMAGES = "images"
MAX_LISTED = 10
"""Maximum number of names that are listed in a message."""

Classes = dict[str, list[Path]]


@dataclass(frozen=True)
class SplitFiles:
    """One split: files, ordered by class and name, and the class number of each."""

    paths: list[Path]
    labels: list[int]


@dataclass(frozen=True)
class ImageListing:
    """The images of a folder; `classes` are sorted. `splits` are train, test and, if there is one, valid."""

    classes: tuple[str, ...]
    splits: dict[str, SplitFiles]
    dangling: dict[Path, Problem]
    """Images that are links whose targets do not exist."""


@dataclass(frozen=True)
class _Split:
    folder: Path
    classes: Classes
    num_unlabelled: int = 0


def list_images(root: Path) -> ImageListing:
    """Return the images below `root`. Raises DataError with all problems of their folders."""
    search = ImageSearch()
    folders = _split_folders(root, search)
    train = _read_split(folders["train"], search, train_classes=())
    others = {
        name: _read_split(folder, search, train_classes=train.classes)
        for name, folder in folders.items()
        if name != "train"
    }
    _log_skipped(root, search)
    splits = {"train": train, **_choose_test_split(others)}
    if problems := [*search.problems, *_check_classes(splits.values()), *_check_same_classes(splits)]:
        raise DataError(problems)
    classes = sorted(train.classes)
    return ImageListing(
        tuple(classes), {name: _to_part(split, classes) for name, split in splits.items()}, search.dangling
    )


def _split_folders(root: Path, search: ImageSearch) -> dict[str, Path]:
    """Return the folder of each split. Raises DataError unless there are train and test or valid, one folder each."""
    folders: dict[str, list[Path]] = {}
    for entry in search.list_entries(root):
        if entry.name.lower() in SPLIT_NAMES and (is_folder(entry) or is_dangling(entry)):
            folders.setdefault(SPLIT_NAMES[entry.name.lower()], []).append(Path(entry.path))
            search.problems += [describe_dangling(entry)] if is_dangling(entry) else []
    if problems := [*search.problems, *_check_splits(root, folders)]:
        raise DataError(problems)
    return {name: candidates[0] for name, candidates in folders.items()}


def _check_splits(root: Path, folders: Mapping[str, Sequence[Path]]) -> Iterator[Problem]:
    if "train" not in folders:
        yield Problem(str(root), f"has no train/; expected {FOLDER_LAYOUT}")
    if not folders.keys() & {"test", "valid"}:
        yield Problem(str(root), f"has no test/, val/, valid/ or validation/; expected {FOLDER_LAYOUT}")
    for candidates in folders.values():
        if len(candidates) > 1:
            names = " and ".join(f"{folder.name}/" for folder in candidates)
            yield Problem(str(root), f"has {names}, which are folders of the same split: remove all but one")


def _read_split(folder: Path, search: ImageSearch, *, train_classes: Collection[str]) -> _Split:
    """Return the images in `folder` by class; `train_classes` are the classes of the training split."""
    entries = search.list_entries(folder)
    subfolders = [Path(entry.path) for entry in entries if is_folder(entry)]
    if {path.name for path in subfolders} <= {IMAGES} - set(train_classes):
        images = search.find_images(folder)
        if (folder / ANNOTATIONS).is_file():
            return _Split(folder, _read_annotations(folder / ANNOTATIONS, images, search))
        return _Split(folder, {}, len(images))
    search.problems += [describe_dangling(entry) for entry in entries if is_dangling(entry)]
    search.num_others += len(entries) - len(subfolders)
    return _Split(folder, _group_by_class(subfolders, search))


def _group_by_class(folders: Sequence[Path], search: ImageSearch) -> Classes:
    classes: Classes = {}
    for folder in folders:
        images = search.find_images(folder)
        classes.setdefault(_normalize_name(folder.name), []).extend(images)
        if not images:
            search.problems.append(Problem(str(folder), _describe_missing_images(folder)))
    return classes


def _normalize_name(name: str) -> str:
    """Return `name` in Unicode form NFC: macOS writes accents as separate characters."""
    return unicodedata.normalize("NFC", name)


def _describe_missing_images(folder: Path) -> str:
    if not any(folder.iterdir()):
        return "an empty class folder: add images, or remove the folder from every split"
    return f"a class folder without images: no file name in it ends in {', '.join(SUFFIXES)}"


def _read_annotations(path: Path, images: Sequence[Path], search: ImageSearch) -> Classes:
    """Return `images` by class, according to the annotations in `path`."""
    lines = (line.split("\t") for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip())
    class_of = {line[0]: _normalize_name(line[1]) for line in lines if len(line) > 1}
    classes: Classes = {}
    for image in images:
        if image.name in class_of:
            classes.setdefault(class_of[image.name], []).append(image)
    image_names = {image.name for image in images}
    search.problems += [
        Problem(str(path), f"{message}: {join_some(names)}")
        for message, names in (
            ("lists images that do not exist", class_of.keys() - image_names),
            ("does not list all images", image_names - class_of.keys()),
        )
        if names
    ]
    return classes


def _choose_test_split(splits: dict[str, _Split]) -> dict[str, _Split]:
    """Return `splits`, with val as the test split if test is missing or has no labels, as in Tiny ImageNet."""
    valid, test = splits.get("valid"), splits.get("test")
    if valid is None or (test is not None and not (test.num_unlabelled and valid.classes)):
        return splits
    if test is not None:
        message = "%s: ignored, as it has no class folders: its %d images have no labels; %s is used as the test split"
        log.warning(message, test.folder, test.num_unlabelled, valid.folder)
    return {"test": valid}


def _check_classes(splits: Collection[_Split]) -> Iterator[Problem]:
    for split in splits:
        if not split.classes:
            found = f"its {split.num_unlabelled} images have no labels" if split.num_unlabelled else "and no images"
            yield Problem(str(split.folder), f"has no class folders, {found}; expected {FOLDER_LAYOUT}")
        for name in filter(_is_unsafe, split.classes):
            yield Problem(str(split.folder), f"{name!a} is not a valid class name: use letters, digits and signs")


def _is_unsafe(name: str) -> bool:
    """Return whether `name` has control characters, bytes that are not UTF-8, or changes of the writing direction.

    Joiners are safe: Persian, Hindi and emoji need them. Characters unknown to this Python's Unicode tables are safe.
    """
    return any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in _DIRECTIONS for letter in name)


_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def _check_same_classes(splits: Mapping[str, _Split]) -> Iterator[Problem]:
    train = splits["train"]
    for split in (split for split in splits.values() if split.classes and train.classes):
        for folder, missing in (
            (split.folder, train.classes.keys() - split.classes.keys()),
            (train.folder, split.classes.keys() - train.classes.keys()),
        ):
            if missing:
                yield Problem(str(folder), f"lacks the classes {join_some(missing)}: all splits need the same classes")


def join_some(names: Collection[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{', '.join(sorted(names)[:MAX_LISTED])}{more}"


def _log_skipped(root: Path, search: ImageSearch) -> None:
    if search.junk:
        counts = Counter(path.rpartition("/")[2] for path in search.junk)
        found = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        log.warning("%s: skipped files and folders that are not data: %s", root, found)
    if search.num_others:
        message = "%s: skipped files outside of class folders or without one of the extensions %s: %d"
        log.warning(message, root, ", ".join(SUFFIXES), search.num_others)


def _to_part(split: _Split, classes: Sequence[str]) -> SplitFiles:
    labelled = [(path, label) for label, name in enumerate(classes) for path in split.classes[name]]
    return SplitFiles([path for path, _ in labelled], [label for _, label in labelled])
