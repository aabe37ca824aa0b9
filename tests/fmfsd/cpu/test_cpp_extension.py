"""Our C++ is compiled once, kept where nobody else can write, and done without where there is no compiler."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fmfsd.cpu import cpp_extension
from launcher.check.machine_checks import private_kernels
from launcher.config.launch_config import LaunchConfig
from tests.helpers.checks import CPU


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of libraries, of which this process knows none."""
    monkeypatch.setattr("fmfsd.system.kernel_cache.cache_home", lambda environment: tmp_path)
    cpp_extension.library.cache_clear()
    (tmp_path / "fmfsd").mkdir()
    yield tmp_path / "fmfsd" / "kernels"
    cpp_extension.library.cache_clear()


def test_a_library_is_compiled_once_for_its_source_definitions_and_headers(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    monkeypatch.setattr(cpp_extension, "SOURCES", sources)
    (sources / "one.h").write_text("#define ADDED 1\n")
    (sources / "one.cpp").write_text('#include "one.h"\nextern "C" long answer() { return T + ADDED; }\n')

    def answers(*definitions: str) -> tuple[int, int]:
        """And how many libraries there are."""
        cpp_extension.library.cache_clear()
        library = cpp_extension.library("one", *definitions)
        assert library is not None
        return library.answer(), len(list(empty_cache.iterdir()))

    assert [answers("T=1"), answers("T=1"), answers("T=2")] == [(2, 1), (2, 1), (3, 2)]
    (sources / "one.h").write_text("#define ADDED 5\n")
    assert answers("T=2") == (7, 3)
    assert {path.suffix for path in empty_cache.iterdir()} == {".so"}, "nothing beside them"


@pytest.mark.usefixtures("processes")
def test_without_a_compiler_there_is_none(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_extension, "COMPILER", "no-such-compiler")
    assert cpp_extension.library("sums") is None
    assert list(empty_cache.iterdir()) == []


def test_nor_is_there_one_of_what_does_not_compile(empty_cache: Path) -> None:
    assert cpp_extension.library("sums", "SEAT=1") is None
    assert list(empty_cache.iterdir()) == []


def test_nor_is_one_in_a_folder_that_they_may_write(empty_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log and the check say how to change that."""
    empty_cache.mkdir(mode=0o700)
    empty_cache.chmod(0o777)
    assert cpp_extension.library("sums") is None
    told = f"{empty_cache} has mode 0777, so other users can write to it: `chmod go-w {empty_cache}`"
    assert told in caplog.text
    assert [told in text for text in private_kernels(LaunchConfig(), CPU)] == [True]
    empty_cache.chmod(0o700)
    assert list(private_kernels(LaunchConfig(), CPU)) == []
    assert list(empty_cache.iterdir()) == []


def test_a_umask_for_groups_does_not_matter(empty_cache: Path) -> None:
    empty_cache.parent.chmod(0o775)
    assert cpp_extension.library("sums") is not None
    assert empty_cache.parent.stat().st_mode & 0o777 == 0o755


def test_a_library_that_others_may_write_is_not_loaded(empty_cache: Path) -> None:
    assert cpp_extension.library("sums") is not None
    (made,) = empty_cache.iterdir()
    made.chmod(0o722)
    cpp_extension.library.cache_clear()
    assert cpp_extension.library("sums") is None
