"""Cache folders of users whose home or temporary folder can't be used."""

import getpass
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fmfsd.system.cache_dir import cache_home, cache_note, complete_environment
from fmfsd.system.kernel_cache import kernel_folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove this user from the password database, as in a container with an arbitrary user id."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)


def private_cache(temporary: Path) -> Path:
    return temporary / f"fmfsd-cache-{os.getuid()}"


def test_caches_are_in_the_standard_folder_if_it_can_be_used(temporary: Path, tmp_path: Path) -> None:
    for environment in ({"HOME": str(tmp_path)}, {"HOME": "/dev/null", "XDG_CACHE_HOME": str(tmp_path / ".cache")}):
        assert (cache_home(environment), cache_note(environment)) == (tmp_path / ".cache", "")
    assert list(temporary.iterdir()) == []


@pytest.mark.fault("F62")
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"HOME": "/dev/null"}, "/dev/null/.cache can't be created"),
        ({"HOME": "/dev/null/home", "XDG_CACHE_HOME": "no absolute path"}, "/dev/null/home/.cache can't be created"),
        ({"XDG_CACHE_HOME": "/dev/null"}, "/dev/null can't be written"),
    ],
)
def test_otherwise_caches_are_in_a_private_temporary_folder_with_an_explanation(
    environment: dict[str, str], reason: str, temporary: Path
) -> None:
    assert cache_note(environment) == f"caches are in {private_cache(temporary)}, because {reason}"
    assert cache_home(environment).stat().st_mode & 0o777 == 0o700


@pytest.mark.fault("F62")
def test_a_user_without_home_and_name_gets_both(
    temporary: Path, no_entry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch needs the name, and without HOME packages would create a folder named ~."""
    environment = dict[str, str]()
    assert complete_environment(environment).endswith(
        f"HOME is not set, and this machine does not know user {os.getuid()}"
    )
    assert environment["HOME"] == environment["XDG_CACHE_HOME"] == str(private_cache(temporary))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("USER", environment["USER"])
    assert getpass.getuser() == f"user-{os.getuid()}"


def test_a_complete_environment_is_not_changed(temporary: Path, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "USER": "me"}
    assert complete_environment(environment) == ""
    assert environment == {"HOME": str(tmp_path), "USER": "me"}


@pytest.mark.parametrize("kind", ["open", "link"])
def test_a_temporary_folder_that_others_may_have_created_is_not_used(
    kind: str, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other users could put programs there."""
    monkeypatch.setattr("fmfsd.system.cache_dir._TEMPORARY", ())
    (tmp_path / "foreign").mkdir(mode=0o700)
    if kind == "link":
        private_cache(temporary).symlink_to(tmp_path / "foreign")
    else:
        private_cache(temporary).mkdir()
        private_cache(temporary).chmod(0o777)
    assert cache_note({"XDG_CACHE_HOME": str(private_cache(temporary))}).endswith(
        f"because {private_cache(temporary)} may belong to another user"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/none")
    assert not cache_home(os.environ).is_dir()
    with pytest.raises(OSError, match="Not a directory"):
        kernel_folder()


MOUNTED = 'mkdir "$1" && mount -t tmpfs -o "$2" none "$1" && shift 2 && exec "$@"'
PRINT = """
import json, os
from fmfsd.system.cache_dir import cache_home, complete_environment
note = complete_environment(os.environ)
print(json.dumps([note, str(cache_home(os.environ)), os.environ.get("TORCHINDUCTOR_CACHE_DIR")]))
"""


@pytest.mark.fault("F62")
@pytest.mark.usefixtures("processes")
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_caches_are_not_on_a_read_only_or_noexec_file_system(tmp_path: Path) -> None:
    """Real file systems. By default torch.compile puts its programs into the folder for temporary files."""
    mounted, writable, temporary = str(tmp_path / "mounted"), str(tmp_path / "writable"), tmp_path / "tmp"
    temporary.mkdir()

    def caches_with_mount(option: str, **variables: str) -> list[str | None]:
        shutil.rmtree(mounted, ignore_errors=True)
        inside = ("unshare", "--mount", "sh", "-c", MOUNTED, "sh", mounted, option, sys.executable, "-c", PRINT)
        env = {"PATH": os.environ["PATH"], "FMFSD_TEST_ID": os.environ["FMFSD_TEST_ID"], **variables}
        return list(json.loads(subprocess.run(inside, env=env, check=True, capture_output=True, text=True).stdout))

    assert caches_with_mount("noexec", HOME=writable, TMPDIR=mounted) == [
        "",
        f"{writable}/.cache",
        f"{writable}/.cache/torchinductor",
    ]
    for option, reason in {"noexec": "is on a file system that is mounted noexec", "ro": "can't be created"}.items():
        note, caches, inductor = caches_with_mount(option, HOME=mounted, TMPDIR=str(temporary))
        assert (caches, inductor) == (str(private_cache(temporary)), None)
        assert note == f"caches are in {caches}, because {mounted}/.cache {reason}"
