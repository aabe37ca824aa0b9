"""Finds the search spaces and batch scripts that are shipped with the launcher, in a checkout or a wheel."""

import difflib
from pathlib import Path

from fmfsd.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]


def packaged_folder(name: str) -> Path:
    """Return the folder `tune_spaces` or `cluster`: next to the package in a checkout, inside it in a wheel."""
    in_wheel, in_checkout = _PACKAGE / "shipped" / name, _PACKAGE.parent / name
    return in_wheel if in_wheel.is_dir() else in_checkout


def find_space(source: str) -> Path:
    """Return the file of a search space, given by path or by the name of a shipped one. ConfigError for an unknown
    name."""
    if "/" in source or source.endswith((".yaml", ".yml")):
        return Path(source)
    names = sorted(path.stem for path in packaged_folder("tune_spaces").glob("*.yaml"))
    if source in names:
        return packaged_folder("tune_spaces") / f"{source}.yaml"
    close = difflib.get_close_matches(source, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ";"
    raise ConfigError(f"unknown search space {source!r}{hint} available: {', '.join(names)}")
