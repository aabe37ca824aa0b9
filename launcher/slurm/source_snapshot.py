"""Snapshot of the source code in the run directory, so that later edits do not change a pending job."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import fmfsd
from fmfsd.system.atomic_files import write_atomic
from launcher.config.packaged_files import packaged_folder
from launcher.run_dir.manifest import COMMIT_FILE, OWN_PACKAGES, list_uncommitted_files, read_commit

PACKAGED_FOLDERS = ("tune_spaces", "cluster")
SITE_SCRIPT = "cluster/env.sh"


@dataclass(frozen=True)
class SourceSnapshot:
    """The files to copy, by their names in the copy, and a digest of them.

    `version`: the git commit, and a line per uncommitted file; empty if unknown.
    """

    files: dict[str, Path]
    version: str
    digest: str

    @classmethod
    def from_running_program(cls, site_script: Path | None = None) -> "SourceSnapshot":
        """Return the snapshot of the running program. `site_script` replaces the packaged `env.sh`."""
        root = Path(fmfsd.__file__).parents[1]
        folders = {
            **{name: root / name for name in OWN_PACKAGES},
            **{name: packaged_folder(name) for name in PACKAGED_FOLDERS},
        }
        files = {
            f"{name}/{path.relative_to(folder)}": path
            for name, folder in folders.items()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not {"__pycache__", "shipped"} & set(path.relative_to(folder).parts)
        }
        if site_script is not None:
            files[SITE_SCRIPT] = site_script
        version = "\n".join([read_commit(root) or "", *(list_uncommitted_files(root) or ())]).strip()
        return cls(files, version, _digest(files, version))

    @property
    def site_script(self) -> Path:
        """Return the file that becomes the job's `env.sh`."""
        return self.files[SITE_SCRIPT]

    def folder_in(self, parent: Path) -> Path:
        """Return the folder of the copy in `parent`, named by the digest."""
        return parent / self.digest

    def write(self, parent: Path) -> Path:
        """Write the copy into `parent`, atomically, unless it exists; return its folder. OSError."""
        folder = self.folder_in(parent)
        if folder.exists():
            return folder
        temporary = parent / f".{self.digest}.{os.getpid()}"
        try:
            for name, path in self.files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                shutil.copyfile(path, temporary / name)
            if self.version:
                write_atomic(temporary / COMMIT_FILE, self.version + "\n")
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder


def _digest(files: dict[str, Path], version: str) -> str:
    total = hashlib.sha256(version.encode())
    for name, path in files.items():
        total.update(f"\0{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:12]
