"""Downloads an official archive: once, atomically, and with its checksum verified."""

import logging
import os
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from fmfsd.data.cifar.official_files import compute_md5
from fmfsd.data.image_files.file_types import HTML, detect_file_type
from fmfsd.errors import CheckError, Problem
from fmfsd.system.atomic_files import flush_to_disk
from fmfsd.system.file_locks import wait_for_lock
from fmfsd.terminal import ProgressCallback

log = logging.getLogger(__name__)
TIMEOUT_S = 30.0
_BLOCK = 1 << 20


def download(url: str, target: Path, *, md5: str, report: ProgressCallback) -> None:
    """Download `url` to `target`, unless another process has done so. An interrupted download is resumed.

    Raises CheckError without network, or if the MD5 sum differs.
    """
    part = target.with_name(f".{target.name}.part")
    with wait_for_lock(target.with_name(f".{target.name}.lock"), log.warning):
        if target.exists():
            return
        try:
            _fetch_all(url, part, report)
            _require_sum(url, part, md5)
            os.replace(part, target)
        except (OSError, HTTPException, ValueError) as error:
            size = _get_size(part)
            remedy = f"; run the same command again to resume after {size} bytes" if size else ""
            raise CheckError([Problem(url, f"download failed: {type(error).__name__}: {error}{remedy}")]) from error


def _get_size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _fetch_all(url: str, part: Path, report: ProgressCallback) -> None:
    """Download the rest of `part`. After a broken connection, reconnect and resume as long as that adds bytes."""
    while True:
        before = _get_size(part)
        try:
            _fetch(url, part, before, report)
            return
        except HTTPError as error:
            if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not before:
                raise
            part.unlink()
        except (OSError, HTTPException):
            if _get_size(part) <= before:
                raise


def _fetch(url: str, part: Path, start: int, report: ProgressCallback) -> None:
    """Append `url` from byte `start` to `part`, or rewrite `part` if the server sends the whole file."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        resumes = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        done = start if response.status == HTTPStatus.PARTIAL_CONTENT and resumes else 0
        total = done + length if (length := int(response.headers.get("Content-Length") or 0)) else 0
        with part.open("ab" if done else "wb") as file:
            while block := response.read1(_BLOCK):  # without waiting for a full block, so that a kill loses little
                done += file.write(block)
                report(f"downloading {url.rpartition('/')[2]}", done, total)
            file.flush()
            flush_to_disk(file.fileno())
    if done < total:
        raise OSError(f"the connection was closed after {done} of {total} bytes")


def _require_sum(url: str, part: Path, md5: str) -> None:
    """Raise CheckError, and remove the download, unless it has the expected MD5 sum."""
    actual, file_type = compute_md5(part), detect_file_type(part)
    if actual != md5:
        part.unlink()
        message = f"its MD5 sum is {actual}, expected {md5}: the server sent {file_type}, not the official archive"
        hint = "; check whether a login page or a proxy answers instead" if file_type == HTML else ""
        raise CheckError([Problem(url, f"{message}{hint}")])
