"""A simulated container: a mount namespace in which this environment's Python has another path."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

HOST = "inside"
"""The host name inside the container."""


def container_skip_reason() -> str:
    """Return the reason why this machine cannot simulate containers, or an empty string."""
    return "needs root and unshare" if os.geteuid() or shutil.which("unshare") is None else ""


def write_container(folder: Path) -> str:
    """Write a container script to `folder` and return the command for --wrap. The only Python inside is `python3`."""
    script, bin_folder = folder / "container.sh", folder / "image" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "python3").symlink_to(os.path.realpath(sys.executable))
    packages = ":".join(dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))))
    script.write_text(
        "set -e\n"
        f"mount -t tmpfs none '{Path(sys.executable).parent}'\n"
        f"hostname {HOST}\n"
        f"export PATH='{bin_folder}:/usr/bin:/bin' PYTHONPATH='{Path(__file__).parents[2]}:{packages}' INSIDE=yes\n"
        'exec "$@"\n'
    )
    return f"unshare --mount --uts sh '{script}'"
