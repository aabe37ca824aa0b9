"""Checks that a prepared set matches the files that its source has now."""

from pathlib import Path

from fmfsd.config.names import FOLDER
from fmfsd.data.cifar.load import read_source_files
from fmfsd.data.cifar.official_files import OFFICIAL
from fmfsd.data.image_files.check_types import find_wrong_types
from fmfsd.data.image_files.layouts import join_some, list_images
from fmfsd.data.image_files.source_files import find_differences, read_record, to_source
from fmfsd.data.shards.index import SetIndex
from fmfsd.errors import DataError, Problem
from fmfsd.terminal import ProgressCallback


def require_same_source(index: SetIndex, source: Path, report: ProgressCallback) -> None:
    """Raise DataError unless the set of `index` was prepared from the files in `source`."""
    differences = list[str]()
    if index.name == FOLDER:
        differences = _find_other_images(index, source, report)
    elif index.name in OFFICIAL:
        other = {file.file for file in set(read_source_files(OFFICIAL[index.name], source)) ^ set(index.sources)}
        differences = [join_some(other)] if other else []
    if differences:
        remedy = "choose another --out, or delete the set and prepare it again"
        found = ", ".join(differences)
        raise DataError([Problem(str(index.folder), f"was prepared from other files: {found}; {remedy}")])


def _find_other_images(index: SetIndex, root: Path, report: ProgressCallback) -> list[str]:
    states = read_record(index.folder)
    if to_source(states) not in index.sources:
        remedy = "delete the set and prepare it again"
        raise DataError([Problem(str(index.folder), f"its record of source images does not match its index; {remedy}")])
    listing = list_images(root)
    names = {str(path.relative_to(root)): path for part in listing.splits.values() for path in part.paths}
    unknown = [path for name, path in names.items() if name not in states and path not in listing.dangling]
    skipped = {*listing.dangling, *find_wrong_types(unknown, report)}
    return find_differences(
        states, root, [name for name, path in names.items() if name in states or path not in skipped]
    )
