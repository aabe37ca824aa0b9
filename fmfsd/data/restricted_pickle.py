"""Reads the official CIFAR pickles, and nothing that could run code.

Allowed are the numbers, strings, lists and dicts that pickle makes by itself, and a NumPy array of unsigned bytes.
The array is rebuilt here from its bytes: no object that the file names is ever called, NumPy's own included. Keys of
dictionaries are strings and there are no sets, since hashing a few nested tuples can take a lifetime; that is why the
unpickler is the one in Python, whose operations can be chosen.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fmfsd.errors import DataError, Problem

_ARRAY = {(module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")}


class _Bytes:
    """Stands for `numpy.dtype('u1')`; any other type is refused."""

    def __init__(self, code: str, *_: Any) -> None:
        if code != "u1":
            raise pickle.UnpicklingError("an array whose elements are no unsigned bytes")

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for `numpy.ndarray` while its state is read."""

    def __init__(self, *_: Any) -> None:
        self.values = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran_order, data = state
        if not isinstance(kind, _Bytes) or fortran_order:
            raise pickle.UnpicklingError("an array that is not of unsigned bytes in row order")
        content = data.encode("latin1") if isinstance(data, str) else data
        self.values = np.frombuffer(content, np.uint8).reshape(shape)


def _latin1(text: str, encoding: str) -> bytes:
    """Stands for `codecs.encode`, by which Python 3 writes bytes in the old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError("bytes in another encoding than latin1")
    return text.encode("latin1")


class _TextKeys(dict[str, Any]):
    """A dictionary being read."""

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise pickle.UnpicklingError(f"a key of type {type(key).__name__}; keys are strings")
        super().__setitem__(key, value)


def _load_empty_dict(unpickler: Any) -> None:
    unpickler.stack.append(_TextKeys())


def _refuse(_unpickler: Any) -> None:
    raise pickle.UnpicklingError("it holds a set, or a dictionary in the form of protocol 0")


_REFUSED = (pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)


class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        **{code[0]: _refuse for code in _REFUSED},
        pickle.EMPTY_DICT[0]: _load_empty_dict,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAY:
            return lambda *_: _Array()
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _Array if name == "ndarray" else _Bytes
        raise pickle.UnpicklingError(f"it names {f'{module}.{name}'[:80]}, which could run code")


def load_arrays(data: bytes, name: str) -> dict[str, Any]:
    """The dictionary pickled in `data`, its arrays as uint8 NumPy arrays; `name` is the file's name in errors.

    Raises DataError for a pickle that is damaged, that names anything but such arrays, or that holds no dictionary.
    """
    try:
        content = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError([Problem(name, f"not read: {error or type(error).__name__}")]) from error
    if not isinstance(content, dict):
        raise DataError([Problem(name, f"holds a {type(content).__name__}, expected a dictionary")])
    return {key: value.values if isinstance(value, _Array) else value for key, value in content.items()}
