"""C++ libraries are compiled once, cached where no other user can write, and optional without a compiler."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fmfsd.cpu import cpp_extension
from launcher.check.machine_checks import warn_no_cpu_kernels
from launcher.config.launch_config import LaunchConfig
from tests.helpers.checks import CPU_SITE


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Return the cache folder of libraries, of which this process has loaded none."""
    monkeypatch.setattr("fmfsd.system.kernel_cache.cache_home", lambda environment: tmp_path)
    cpp_extension.load_library.cache_clear()
    (tmp_path / "fmfsd").mkdir()
    yield tmp_path / "fmfsd" / "kernels"
    cpp_extension.load_library.cache_clear()


def test_a_library_is_compiled_once_for_its_source_definitions_and_headers(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    monkeypatch.setattr(cpp_extension, "SOURCES", sources)
    (sources / "one.h").write_text("#define ADDED 1\n")
    (sources / "one.cpp").write_text('#include "one.h"\nextern "C" long answer() { return T + ADDED; }\n')

    def answers(*definitions: str) -> tuple[int, int]:
        """Return the library's answer, and the number of cached libraries."""
        cpp_extension.load_library.cache_clear()
        library = cpp_extension.load_library("one", *definitions)
        assert library is not None
        return library.answer(), len(list(empty_cache.iterdir()))

    assert [answers("T=1"), answers("T=1"), answers("T=2")] == [(2, 1), (2, 1), (3, 2)]
    (sources / "one.h").write_text("#define ADDED 5\n")
    assert answers("T=2") == (7, 3)
    assert {path.suffix for path in empty_cache.iterdir()} == {".so"}, "nothing else"


@pytest.mark.usefixtures("processes")
def test_without_a_compiler_there_is_no_library(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_extension, "COMPILER", "no-such-compiler")
    assert cpp_extension.load_library("sums") is None
    assert list(empty_cache.iterdir()) == []


def test_a_source_that_does_not_compile_gives_no_library(empty_cache: Path) -> None:
    assert cpp_extension.load_library("sums", "SEAT=1") is None
    assert list(empty_cache.iterdir()) == []


def test_no_library_is_cached_in_a_folder_that_others_can_write(
    empty_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log and the check before a launch name the remedy."""
    empty_cache.mkdir(mode=0o700)
    empty_cache.chmod(0o777)
    assert cpp_extension.load_library("sums") is None
    problem = f"{empty_cache} has mode 0777, so other users can write to it: `chmod go-w {empty_cache}`"
    assert problem in caplog.text
    assert [problem in text for text in warn_no_cpu_kernels(LaunchConfig(), CPU_SITE)] == [True]
    empty_cache.chmod(0o700)
    assert list(warn_no_cpu_kernels(LaunchConfig(), CPU_SITE)) == []
    assert list(empty_cache.iterdir()) == []


def test_a_group_writable_cache_folder_is_made_private(empty_cache: Path) -> None:
    empty_cache.parent.chmod(0o775)
    assert cpp_extension.load_library("sums") is not None
    assert empty_cache.parent.stat().st_mode & 0o777 == 0o755


def test_a_library_that_others_can_write_is_not_loaded(empty_cache: Path) -> None:
    assert cpp_extension.load_library("sums") is not None
    (path,) = empty_cache.iterdir()
    path.chmod(0o722)
    cpp_extension.load_library.cache_clear()
    assert cpp_extension.load_library("sums") is None
