"""Fetches an official archive: once, whole or not at all, and only with the sum that is expected."""

import hashlib
import logging
import os
import urllib.request
from http.client import HTTPException
from pathlib import Path

from fmfsd.errors import CheckError, Problem
from fmfsd.files import flush_to_disk
from fmfsd.locks import wait_for_lock
from fmfsd.terminal import Report

log = logging.getLogger(__name__)
TIMEOUT_S = 30.0
_BLOCK = 1 << 20


def download(url: str, target: Path, *, md5: str, report: Report) -> None:
    """Fetch `url` to `target`, unless it is there by the time that nobody else is fetching it.

    Raises CheckError without network, or if the content's MD5 sum is another.
    """
    beside = target.with_name(f".{target.name}.part")
    with wait_for_lock(target.with_name(f".{target.name}.lock"), log.warning):
        if target.exists():
            return
        try:
            found = _fetch(url, beside, report)
            if found != md5:
                raise CheckError(
                    [Problem(url, f"its MD5 sum is {found}, expected {md5}: what came is not the official archive")]
                )
            os.replace(beside, target)
        except (OSError, HTTPException, ValueError) as error:
            raise CheckError([Problem(url, f"can't be fetched: {type(error).__name__}: {error}")]) from error
        finally:
            beside.unlink(missing_ok=True)


def _fetch(url: str, target: Path, report: Report) -> str:
    """Stream `url` into `target`; its MD5 sum."""
    digest, done = hashlib.md5(usedforsecurity=False), 0
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, target.open("wb") as file:
        total = int(answer.headers.get("Content-Length") or 0)
        while block := answer.read(_BLOCK):
            digest.update(block)
            done += file.write(block)
            report(f"fetching {url.rpartition('/')[2]}", done, total)
        file.flush()
        flush_to_disk(file.fileno())
    return digest.hexdigest()
