"""A stand-in for the Hugging Face hub: the part of its protocol that a file download uses, on 127.0.0.1."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandIn:
    """Serves ``files``, ``{"owner/repo": {"file": bytes}}``, while in its ``with`` block.

    ``cuts``: how many bodies from now on end after half of their bytes (-1: all). ``resumes``: whether Range is
    honoured. ``status``: answer everything with this code and ``X-Error-Code`` instead. ``requests``: (method, path,
    Range header) of every request answered so far.
    """

    def __init__(self, files: dict[str, dict[str, bytes]]):
        self.files = files
        self.cuts = 0
        self.resumes = True
        self.status: tuple[int, str] | None = None
        self.requests: list[tuple[str, str, str | None]] = []

    def __enter__(self) -> "StandIn":
        stand_in = self

        class Handler(_Handler):
            hub = stand_in

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.die()

    def die(self) -> None:
        """Refuse connections from now on (the port stays the same, and closed)."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: StandIn
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        hub = self.hub
        self.close_connection = True  # one request per connection: when the server dies, none stays open
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        if hub.status:
            return self._refuse(*hub.status)
        repo, resolve, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if not resolve or repo not in hub.files or revision not in ("main", COMMIT):
            return self._refuse(404, "RepoNotFound")
        if file not in hub.files[repo]:
            return self._refuse(404, "EntryNotFound")
        body = hub.files[repo][file]
        start = 0
        if hub.resumes and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if hub.resumes:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(body)))
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("Connection", "close")
        self.end_headers()
        if not with_body:
            return
        body = body[start:]
        if hub.cuts:
            hub.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Silent: the requests are in ``hub.requests``."""
