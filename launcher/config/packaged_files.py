"""Finds the search spaces and batch scripts that travel with the launcher, from a checkout or from a wheel."""

import difflib
from pathlib import Path

from fmfsd.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]


def shipped_folder(name: str) -> Path:
    """`tune_spaces` or `cluster`: beside the package in a checkout, inside it in a wheel."""
    inside, beside = _PACKAGE / "shipped" / name, _PACKAGE.parent / name
    return inside if inside.is_dir() else beside


def find_space(source: str) -> Path:
    """The file of a search space, given by path or by a shipped one's name. ConfigError if there is no such name."""
    if "/" in source or source.endswith((".yaml", ".yml")):
        return Path(source)
    names = sorted(path.stem for path in shipped_folder("tune_spaces").glob("*.yaml"))
    if source in names:
        return shipped_folder("tune_spaces") / f"{source}.yaml"
    close = difflib.get_close_matches(source, names, n=1)
    meant = f"; did you mean {close[0]}?" if close else ";"
    raise ConfigError(f"no search space is called {source!r}{meant} spaces: {', '.join(names)}")
