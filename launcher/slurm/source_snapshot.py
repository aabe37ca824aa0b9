"""A copy of the program in a run's folder, so that what is edited later does not change a job that waits."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import fmfsd
from fmfsd.system.atomic_files import write_whole
from launcher.config.packaged_files import shipped_folder
from launcher.run_dir.manifest import COMMIT_FILE, OWN_PACKAGES, commit_of, uncommitted_files

SHIPPED = ("tune_spaces", "cluster")
SITE_SCRIPT = "cluster/env.sh"


@dataclass(frozen=True)
class Snapshot:
    """What is to be copied, by its name in the copy, and a digest of all of it.

    `version`: the original's commit, and a line for each uncommitted file; empty if unknown.
    """

    files: dict[str, Path]
    version: str
    digest: str

    @classmethod
    def of_program(cls, site_script: Path | None = None) -> "Snapshot":
        """Of the program that runs. `site_script` replaces the `env.sh` that is shipped."""
        root = Path(fmfsd.__file__).parents[1]
        folders = {**{name: root / name for name in OWN_PACKAGES}, **{name: shipped_folder(name) for name in SHIPPED}}
        files = {
            f"{name}/{path.relative_to(folder)}": path
            for name, folder in folders.items()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not {"__pycache__", "shipped"} & set(path.relative_to(folder).parts)
        }
        if site_script is not None:
            files[SITE_SCRIPT] = site_script
        version = "\n".join([commit_of(root) or "", *(uncommitted_files(root) or ())]).strip()
        return cls(files, version, _digest(files, version))

    @property
    def site_script(self) -> Path:
        """Return the file that becomes the job's `env.sh`."""
        return self.files[SITE_SCRIPT]

    def folder(self, parent: Path) -> Path:
        return parent / self.digest

    def write(self, parent: Path) -> Path:
        """The copy in `parent`: whole or not at all; one that is there already is the same. OSError."""
        folder = self.folder(parent)
        if folder.exists():
            return folder
        beside = parent / f".{self.digest}.{os.getpid()}"
        try:
            for name, path in self.files.items():
                (beside / name).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                shutil.copyfile(path, beside / name)
            if self.version:
                write_whole(beside / COMMIT_FILE, self.version + "\n")
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return folder


def _digest(files: dict[str, Path], version: str) -> str:
    total = hashlib.sha256(version.encode())
    for name, path in files.items():
        total.update(f"\0{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:12]
