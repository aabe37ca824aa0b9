"""Downloads: whole or not at all, once, continued where they broke, and only what was expected."""

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
    """What to wait for, with the connection open, after `limit` bytes."""
    url: str = ""
    asked: list[str | None] = field(default_factory=list)

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.asked.append(wanted)
        start = int(re.findall(r"\d+", wanted)[0]) if wanted and self.ranges else 0
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
def serving(server: Server) -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

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


def test_a_connection_that_breaks_is_continued(tmp_path: Path) -> None:
    with serving(Server(breaks=2)) as server:
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={HALF}-", f"bytes={2 * HALF}-"]
    assert names(tmp_path) == ["file"]


def test_a_server_without_ranges_is_asked_for_all_of_it_again(tmp_path: Path) -> None:
    (tmp_path / ".file.part").write_bytes(CONTENT[:1000])
    with serving(Server(ranges=False, breaks=1)) as server:
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-", f"bytes={HALF}-"]


def test_what_was_fetched_is_kept_for_the_next_try(tmp_path: Path) -> None:
    with serving(Server(breaks=9, limit=0)) as server:
        with pytest.raises(CheckError, match=f"download failed: OSError: .* closed after 0 of {len(CONTENT)} bytes$"):
            download(server.url, tmp_path / "file", md5=MD5, report=quiet)
        (tmp_path / ".file.part").write_bytes(CONTENT[:HALF])
        with pytest.raises(CheckError, match=f"run the same command again to resume after {HALF} bytes"):
            download(server.url, tmp_path / "file", md5=MD5, report=quiet)
        server.breaks = 0
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)
    assert server.asked[-1] == f"bytes={HALF}-"
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.usefixtures("processes")
def test_a_download_that_was_killed_is_continued(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from fmfsd.data.cifar.download import download; "
    code += "download(sys.argv[1], Path('file'), md5=sys.argv[2], report=lambda *_: None)"
    part, killed = tmp_path / ".file.part", threading.Event()
    with serving(Server(breaks=1, stalled=killed)) as server:
        process = subprocess.Popen([sys.executable, "-c", code, server.url, MD5], cwd=tmp_path)
        wait_until(lambda: part.exists() and part.stat().st_size > HALF // 2, "half of what was sent")
        process.kill()
        process.wait()
        killed.set()
        size = part.stat().st_size
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)
    assert server.asked == [None, f"bytes={size}-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("rest", [b"", b"x"])
def test_what_can_not_be_continued_is_fetched_anew(rest: bytes, tmp_path: Path) -> None:
    """The rest of another file, as long as this one or longer."""
    (tmp_path / ".file.part").write_bytes(CONTENT + rest)
    with serving(Server()) as server:
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)
    assert server.asked == [f"bytes={len(CONTENT + rest)}-", None]


def test_a_rest_of_another_file_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".file.part").write_bytes(bytes(HALF))
    with serving(Server()) as server:
        with pytest.raises(CheckError, match=f"expected {MD5}: the server sent .*, not the official archive"):
            download(server.url, tmp_path / "file", md5=MD5, report=quiet)
        assert names(tmp_path) == []
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)


def test_a_page_in_place_of_the_archive_is_called_one(tmp_path: Path) -> None:
    told = "the server sent an HTML page, not the official archive; check whether a login page or a proxy"
    with (
        serving(Server(content=b"<!DOCTYPE html><title>Please log in</title>")) as server,
        pytest.raises(CheckError, match=told),
    ):
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)
    assert names(tmp_path) == []


def test_a_download_is_whole_or_absent(tmp_path: Path) -> None:
    target, other = tmp_path / "file", "4a3ec6ef3a5e8a5b0a3e3a5b0a3e3a5b"
    with serving(Server()) as server:
        with pytest.raises(CheckError, match=f"expected {other}: the server sent text, not the official archive"):
            download(server.url, target, md5=other, report=quiet)
        server.status = 404
        with pytest.raises(CheckError, match="download failed: HTTPError: HTTP Error 404"):
            download(server.url, target, md5=MD5, report=quiet)
    with pytest.raises(CheckError, match="download failed: URLError: .*refused"):
        download(server.url, target, md5=MD5, report=quiet)
    assert names(tmp_path) == []


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nx"])
def test_an_answer_that_is_no_web_servers_is_a_failed_download(answer: bytes, tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/file"
    with listener, pytest.raises(CheckError, match="download failed"):
        download(address, tmp_path / "file", md5="0" * 32, report=quiet)
    thread.join()
    assert names(tmp_path) == []


@pytest.mark.fault("F36")
def test_many_that_want_the_same_archive_fetch_it_once(tmp_path: Path) -> None:
    def fetch() -> None:
        download(server.url, tmp_path / "file", md5=MD5, report=quiet)

    with serving(Server()) as server:
        threads = [threading.Thread(target=fetch) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert server.asked == [None]
    assert (tmp_path / "file").read_bytes() == CONTENT
