"""A restricted unpickler for CIFAR's pickles, written by Python 2 or 3, which can't run code from the file.

It accepts numbers, strings, lists, dictionaries and NumPy arrays of integers. Arrays are rebuilt here from their bytes:
no object that the file names is ever called, not even NumPy's own. Dictionary keys must be strings or bytes, and sets
are rejected, since hashing a few nested tuples can take forever; hence the pure Python unpickler, whose opcodes can be
restricted.
"""

import io
import pickle
import re
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fmfsd.data.image_files.file_types import HEAD_BYTES, detect_type
from fmfsd.errors import DataError, Problem


class _Dtype:
    """Replaces `numpy.dtype`; accepts integer types only."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch("[iu][1248]", code):
            raise pickle.UnpicklingError("an array whose elements are not integers")
        self._code, self.dtype = code, np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = np.dtype(f"{state[1]}{self._code}")


class _Array:
    """Replaces `numpy.ndarray` until its state is read."""

    def __init__(self, *_: Any) -> None:
        self.values: NDArray[Any] = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.values = _build_array(data.encode("latin1") if isinstance(data, str) else data, dtype, shape, is_fortran)


def _build_array(data: Any, dtype: Any, shape: Any, is_fortran: bool) -> NDArray[Any]:
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("an array that is not of integers")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    """Replaces NumPy's function that creates an array in protocols up to 4; its state follows."""
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> _Array:
    """Replaces NumPy's function that creates an array in protocol 5."""
    array = _Array()
    array.values = _build_array(data, dtype, shape, order == "F")
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Replaces `codecs.encode`, with which Python 3 writes bytes in old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError("bytes in another encoding than latin1")
    return text.encode("latin1")


_REPLACEMENTS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}
"""The global names that a pickle may use, and their replacements (NumPy 1 has numpy.core, NumPy 2 numpy._core)."""


class _TextKeys(dict[str, Any]):
    """A dictionary whose bytes keys are decoded to text."""

    def __setitem__(self, key: str | bytes, value: Any) -> None:
        if not isinstance(key, str | bytes):
            raise pickle.UnpicklingError(f"a key of type {type(key).__name__}; keys are strings or bytes")
        super().__setitem__(key if isinstance(key, str) else key.decode("latin1"), value)


def _load_empty_dict(unpickler: Any) -> None:
    unpickler.stack.append(_TextKeys())


def _load_build(unpickler: Any) -> None:
    """Set the state of an array or dtype; reject a state of anything else."""
    if not isinstance(unpickler.stack[-2], _Array | _Dtype):
        raise pickle.UnpicklingError("a state of something that is not an array")
    pickle._Unpickler.dispatch[pickle.BUILD[0]](unpickler)


def _load_bytearray(unpickler: Any) -> None:
    """Read a bytearray without allocating its declared size first, as pickle's own operation does."""
    unpickler.append(bytearray(unpickler.read(int.from_bytes(unpickler.read(8), "little"))))


def _reject(_unpickler: Any) -> None:
    raise pickle.UnpicklingError("it holds a set, or a dictionary in the form of protocol 0")


_REJECTED = (pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)


class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        **{code[0]: _reject for code in _REJECTED},
        pickle.EMPTY_DICT[0]: _load_empty_dict,
        pickle.BUILD[0]: _load_build,
        pickle.BYTEARRAY8[0]: _load_bytearray,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (replacement := _REPLACEMENTS.get((module, name))) is None:
            raise pickle.UnpicklingError(f"it names {f'{module}.{name}'[:80]}, which could run code")
        return replacement


def load_arrays(data: bytes, name: str) -> dict[str, Any]:
    """Return the dictionary pickled in `data`, with NumPy arrays of integers; `name` is the file's name in errors.

    Raises DataError for a pickle that is damaged, contains other objects, or is not a dictionary.
    """
    try:
        content = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        if isinstance(content, dict):
            return {key: value.values if isinstance(value, _Array) else value for key, value in content.items()}
    except Exception as error:  # a damaged pickle can raise nearly anything
        found = f"{str(error) or type(error).__name__} (the file is {detect_type(data[:HEAD_BYTES])})"
        raise DataError([Problem(name, f"can't be read: {found}")]) from error
    raise DataError([Problem(name, f"contains a {type(content).__name__}, expected a dictionary")])
