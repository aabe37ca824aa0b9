"""Reads CIFAR pickles, as Python 2 wrote them and as Python 3 rewrites them, and nothing that could run code.

Allowed are the numbers, strings, lists and dicts that pickle makes by itself, and NumPy arrays of integers. An array is
rebuilt here from its bytes: no object that the file names is ever called, NumPy's own included. Keys of dictionaries
are strings or bytes and there are no sets, since hashing a few nested tuples can take a lifetime; that is why the
unpickler is the one in Python, whose operations can be chosen.
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
    """Stands for `numpy.dtype` of integers; any other type is refused."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch("[iu][1248]", code):
            raise pickle.UnpicklingError("an array whose elements are no integers")
        self._code, self.dtype = code, np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = np.dtype(f"{state[1]}{self._code}")


class _Array:
    """Stands for `numpy.ndarray` while its state is read."""

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
    """Stands for the function of NumPy by which protocols up to 4 begin an array; its state follows."""
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> _Array:
    """Stands for the function of NumPy by which protocol 5 makes an array."""
    array = _Array()
    array.values = _build_array(data, dtype, shape, order == "F")
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Stands for `codecs.encode`, by which Python 3 writes bytes in the old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError("bytes in another encoding than latin1")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}
"""What a pickle may name (NumPy 1 has numpy.core, NumPy 2 numpy._core), and what it gets."""


class _TextKeys(dict[str, Any]):
    """A dictionary being read. Keys of bytes become text."""

    def __setitem__(self, key: str | bytes, value: Any) -> None:
        if not isinstance(key, str | bytes):
            raise pickle.UnpicklingError(f"a key of type {type(key).__name__}; keys are strings or bytes")
        super().__setitem__(key if isinstance(key, str) else key.decode("latin1"), value)


def _load_empty_dict(unpickler: Any) -> None:
    unpickler.stack.append(_TextKeys())


def _load_build(unpickler: Any) -> None:
    """Set the state of arrays and dtypes alone: nothing else has one."""
    if not isinstance(unpickler.stack[-2], _Array | _Dtype):
        raise pickle.UnpicklingError("a state of something that is no array")
    pickle._Unpickler.dispatch[pickle.BUILD[0]](unpickler)


def _load_bytearray(unpickler: Any) -> None:
    """Read as many bytes as there are: pickle's own operation first allocates as many as the file says."""
    unpickler.append(bytearray(unpickler.read(int.from_bytes(unpickler.read(8), "little"))))


def _refuse(_unpickler: Any) -> None:
    raise pickle.UnpicklingError("it holds a set, or a dictionary in the form of protocol 0")


_REFUSED = (pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)


class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        **{code[0]: _refuse for code in _REFUSED},
        pickle.EMPTY_DICT[0]: _load_empty_dict,
        pickle.BUILD[0]: _load_build,
        pickle.BYTEARRAY8[0]: _load_bytearray,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (stand_in := _STAND_INS.get((module, name))) is None:
            raise pickle.UnpicklingError(f"it names {f'{module}.{name}'[:80]}, which could run code")
        return stand_in


def load_arrays(data: bytes, name: str) -> dict[str, Any]:
    """The dictionary pickled in `data`, its arrays as NumPy arrays of integers; `name` is the file's name in errors.

    Raises DataError for a pickle that is damaged, that names anything but such arrays, or that holds no dictionary.
    """
    try:
        content = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        if isinstance(content, dict):
            return {key: value.values if isinstance(value, _Array) else value for key, value in content.items()}
    except Exception as error:  # a damaged pickle can raise nearly anything
        found = f"{str(error) or type(error).__name__} (it holds {detect_type(data[:HEAD_BYTES])})"
        raise DataError([Problem(name, f"not read: {found}")]) from error
    raise DataError([Problem(name, f"holds a {type(content).__name__}, expected a dictionary")])
