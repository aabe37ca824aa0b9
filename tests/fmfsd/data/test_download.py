"""Downloads: complete or absent, fetched once, resumed after an interruption, and verified by checksum."""

import hashlib
import http.server
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fmfsd.data.cifar.download import download
from fmfsd.errors import CheckError
from tests.conftest import quiet
from tests.helpers.processes import wait_until

CONTENT = b"content of the archive\n" * 20_000
MD5 = hashlib.md5(CONTENT).hexdigest()
HALF = 200_000


@dataclass
class Server:
    """A web server on loopback whose connections break after `limit` bytes, as long as `breaks` are left."""

    content: bytes = CONTENT
    ranges: bool = True
    breaks: int = 0
    limit: int = HALF
    status: int = 200
    stalled: threading.Event | None = None
    """If set: after `limit` bytes, wait for this event with the connection open."""
    url: str = ""
    requested_ranges: list[str | None] = field(default_factory=list)

    def respond(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        requested_range = handler.headers.get("Range")
        self.requested_ranges.append(requested_range)
        start = int(re.findall(r"\d+", requested_range)[0]) if requested_range and self.ranges else 0
        if self.status != 200 or (start and start >= len(self.content)):
            handler.send_error(self.status if self.status != 200 else 416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        body = self.content[start:]
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if self.breaks:
            self.breaks -= 1
            body = body[: self.limit]
        handler.wfile.write(body)
        if self.stalled is not None:
            self.stalled.wait(60)


@contextmanager
def run_server(server: Server) -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.respond(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    server.url = f"http://127.0.0.1:{web.server_port}/archive.tar.gz"
    try:
        yield server
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_an_interrupted_download_is_resumed(tmp_path: Path) -> None:
    with run_server(Server(breaks=2)) as server:
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requested_ranges == [None, f"bytes={HALF}-", f"bytes={2 * HALF}-"]
    assert names(tmp_path) == ["file"]


def test_without_support_of_ranges_the_whole_file_is_requested_again(tmp_path: Path) -> None:
    (tmp_path / ".file.part").write_bytes(CONTENT[:1000])
    with run_server(Server(ranges=False, breaks=1)) as server:
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requested_ranges == ["bytes=1000-", f"bytes={HALF}-"]


def test_a_partial_download_is_kept_for_the_next_try(tmp_path: Path) -> None:
    with run_server(Server(breaks=9, limit=0)) as server:
        with pytest.raises(CheckError, match=f"download failed: OSError: .* closed after 0 of {len(CONTENT)} bytes$"):
            download(server.url, tmp_path / "file", md5=MD5, report=quiet)
        (tmp_path / ".file.part").write_bytes(CONTENT[:HALF])
        with pytest.raises(CheckError, match=f"run the same command again to resume after {HALF} bytes"):
            download(server.url, tmp_path / "file", md5=MD5, report=quiet)
        server.breaks = 0
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)
    assert server.requested_ranges[-1] == f"bytes={HALF}-"
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.usefixtures("processes")
def test_a_killed_download_is_resumed(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from fmfsd.data.cifar.download import download; "
    code += "download(sys.argv[1], Path('file'), md5=sys.argv[2], report=lambda *_: None)"
    part, killed = tmp_path / ".file.part", threading.Event()
    with run_server(Server(breaks=1, stalled=killed)) as server:
        process = subprocess.Popen([sys.executable, "-c", code, server.url, MD5], cwd=tmp_path)
        wait_until(lambda: part.exists() and part.stat().st_size > HALF // 2, "half of the bytes sent")
        process.kill()
        process.wait()
        killed.set()
        size = part.stat().st_size
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)
    assert server.requested_ranges == [None, f"bytes={size}-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("rest", [b"", b"x"])
def test_a_partial_file_that_cannot_be_resumed_is_fetched_again(rest: bytes, tmp_path: Path) -> None:
    """The partial file is as long as the file or longer."""
    (tmp_path / ".file.part").write_bytes(CONTENT + rest)
    with run_server(Server()) as server:
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)
    assert server.requested_ranges == [f"bytes={len(CONTENT + rest)}-", None]


def test_a_partial_file_of_another_download_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".file.part").write_bytes(bytes(HALF))
    with run_server(Server()) as server:
        with pytest.raises(CheckError, match=f"expected {MD5}: the server sent .*, not the official archive"):
            download(server.url, tmp_path / "file", md5=MD5, report=quiet)
        assert names(tmp_path) == []
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)


def test_an_html_page_instead_of_the_archive_is_reported(tmp_path: Path) -> None:
    expected = "the server sent an HTML page, not the official archive; check whether a login page or a proxy"
    with (
        run_server(Server(content=b"<!DOCTYPE html><title>Please log in</title>")) as server,
        pytest.raises(CheckError, match=expected),
    ):
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)
    assert names(tmp_path) == []


def test_a_download_is_complete_or_absent(tmp_path: Path) -> None:
    target, other = tmp_path / "file", "4a3ec6ef3a5e8a5b0a3e3a5b0a3e3a5b"
    with run_server(Server()) as server:
        with pytest.raises(CheckError, match=f"expected {other}: the server sent text, not the official archive"):
            download(server.url, target, md5=other, report=quiet)
        server.status = 404
        with pytest.raises(CheckError, match="download failed: HTTPError: HTTP Error 404"):
            download(server.url, target, md5=MD5, report=quiet)
    with pytest.raises(CheckError, match="download failed: URLError: .*refused"):
        download(server.url, target, md5=MD5, report=quiet)
    assert names(tmp_path) == []


@pytest.mark.parametrize("response", [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nx"])
def test_a_response_that_is_not_http_is_a_download_error(response: bytes, tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(response)

    thread = threading.Thread(target=serve)
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/file"
    with listener, pytest.raises(CheckError, match="download failed"):
        download(address, tmp_path / "file", md5="0" * 32, report=quiet)
    thread.join()
    assert names(tmp_path) == []


@pytest.mark.fault("F36")
def test_concurrent_downloads_of_one_archive_fetch_it_once(tmp_path: Path) -> None:
    def fetch() -> None:
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)

    with run_server(Server()) as server:
        threads = [threading.Thread(target=fetch) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert server.requested_ranges == [None]
    assert (tmp_path / "file").read_bytes() == CONTENT
