"""HTTP by the standard library: connections, limits, who may ask, and errors in words.

Browsers are guarded against other pages: an unknown ``Host`` (DNS rebinding) is refused, nothing is shared
with other origins, and what changes anything must come from this page, with a type that no form can send.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import ipaddress
import json
import shutil
import socket
import socketserver
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.web.told import by_name

MAX_CONNECTIONS = 128
PATIENCE = 30.0
"""Seconds that a browser may be silent within a request, or keep a connection without one."""
ENDING = 10.0
"""Seconds that a connection may take to end with the server."""
MAX_JSON = 256 * 1024
"""Bytes of a JSON body."""
DRAINED = 512 * 2**20
"""Bytes of a refused body that are read and dropped, so that the browser gets to read the refusal."""
BLOCK = 1 << 16
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""On every answer."""


class RefusedError(Exception):
    """A request that is refused, in words."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a browser gets."""

    body: bytes | Path | Iterator[bytes]
    """Bytes, a file, or a stream without end."""
    kind: str = "application/json"
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    status: HTTPStatus = HTTPStatus.OK

    @classmethod
    def json(cls, value: object, status: HTTPStatus = HTTPStatus.OK) -> Answer:
        """`value` as JSON."""
        return cls(json.dumps(value, allow_nan=False).encode(), status=status)


@dataclasses.dataclass
class Asked:
    """A request."""

    method: str
    """`HEAD` is a `GET` here."""
    path: tuple[str, ...]
    """Decoded parts between slashes."""
    query: Mapping[str, str]
    headers: Message
    length: int
    """Bytes of the body."""
    stream: io.BufferedIOBase
    unread: int = 0
    """Bytes of the body that are not read yet."""
    proceed: Callable[[], Any] | None = None
    """What tells a browser to send the body, if it waits for that."""

    def json(self) -> Any:
        """The body, which must say that it is JSON: no page elsewhere can send that unasked.

        Raises:
            RefusedError: another type, too long, or no JSON.
        """
        self.check_body(("application/json",), MAX_JSON)
        try:
            return json.loads(self.read(self.length))
        except (ValueError, RecursionError) as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"the request is not valid JSON: {error}") from error

    def check_body(self, kinds: tuple[str, ...], most: int) -> None:
        """Refuse a body of other types, or of more than `most` bytes, before any of it is read."""
        if self.headers.get("Content-Type", "").partition(";")[0].strip().lower() not in kinds:
            raise RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"this must be sent as {' or '.join(kinds)}"
            )
        if self.length > most:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{self.length / 1e6:,.1f} MB are too many; at most {most / 1e6:,.1f} MB are taken",
            )

    def save(self, file: BinaryIO) -> None:
        """Write the body to `file`, in blocks."""
        while self.unread:
            file.write(self.read(min(BLOCK, self.unread)))

    def read(self, count: int) -> bytes:
        """The next bytes of the body."""
        if self.proceed is not None:
            self.proceed()
            self.proceed = None
        data = self.stream.read(count)
        self.unread -= len(data)
        if len(data) < count:
            self.unread = 0
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the request ended too early")
        return data


class Answering(Protocol):
    """What knows the addresses."""

    def answer(self, asked: Asked) -> Answer:
        """The answer; raises `RefusedError` or `UserError` for what is wrong with the request."""
        ...


class Server(ThreadingHTTPServer):
    """Listens at once, and answers with `routes` from `serve_forever` on: a page opened earlier waits."""

    daemon_threads = True
    allow_reuse_port = False  # two servers at one port would share its requests
    request_queue_size = MAX_CONNECTIONS
    routes: Answering

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily, names: Iterable[str]) -> None:
        self.address_family = family
        machine = socket.gethostname().lower()
        self._names = {"localhost", machine, f"{machine}.local", *names}
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._taken: dict[threading.Thread, socket.socket] = {}
        super().__init__(address, Handler)

    @classmethod
    def at(cls, host: str, port: int, names: Iterable[str] = ()) -> Server:
        """Listening at an address of this machine.

        Args:
            host: an address, or a name of one.
            port: 0 takes a free one.
            names: by which browsers may call it, beside addresses and its own name.

        Raises:
            UserError: no such address here, or the port is taken.
        """
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            return cls((str(address[0]), port), family, names)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"cannot listen at {host} port {port}: {reason}; take another with --host or --port"
            ) from error

    @property
    def address(self) -> str:
        """Its URL."""
        host, port = self.server_address[:2]
        shown = f"[{host!s}]" if self.address_family == socket.AF_INET6 else str(host)
        return f"http://{shown}:{port}/"

    def server_bind(self) -> None:
        """As `HTTPServer`'s, which asks DNS for its name besides, and may wait long for the answer."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def knows(self, host: str) -> bool:
        """Whether a browser that asks for `host` means this server: a page elsewhere whose name is led here
        (DNS rebinding) has another name. An address is none.
        """
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
            urlsplit(f"//{host}").port  # noqa: B018  (raises where it is none)
        except ValueError:
            return False
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return name in self._names

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, unless there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.sendall(b"HTTP/1.1 503 Too many connections\r\nContent-Length: 0\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer what comes over a connection."""
        thread = threading.current_thread()
        self._taken[thread] = request
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._taken[thread]
            self._free.release()

    def server_close(self) -> None:
        """Close all connections, and wait for their threads: one that lives longer than the interpreter and
        is the last to hold a compiled function aborts the process in jaxlib.
        """
        super().server_close()
        for thread, connection in [*self._taken.items()]:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(ENDING)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone is nothing to tell."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            traceback.print_exc()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    server_version = "ultrapixel_jax"
    sys_version = ""
    timeout = PATIENCE
    disable_nagle_algorithm = True
    _proceed: Callable[[], Any] | None = None

    def do_GET(self) -> None:
        """Answer."""
        asked: Asked | None = None
        try:
            asked = self._asked()
            answer = self.server.routes.answer(asked)
        except RefusedError as error:
            answer = _said(error.status, error)
        except UserError as error:
            answer = _said(HTTPStatus.BAD_REQUEST, error)
        except ConnectionError:
            raise
        except TimeoutError:
            answer = _said(HTTPStatus.REQUEST_TIMEOUT, "the request did not come to its end")
        except Exception as error:
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"
            answer = _said(HTTPStatus.INTERNAL_SERVER_ERROR, f"a fault of the program's: {said:.300}")
        if asked is None or asked.unread:
            self.close_connection = True
        self._send(answer)
        if asked is not None and asked.unread and asked.proceed is None:
            self._drain(asked)

    do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815

    def handle_expect_100(self) -> bool:
        """Ask for the body when it is read, which refusals do not."""
        self._proceed = super().handle_expect_100
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses, in the same form."""
        self.close_connection = True
        self.request_version = self.protocol_version  # whatever it was, this is an answer
        self._send(_said(HTTPStatus(code), message or HTTPStatus(code).phrase))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: faults are printed where they happen."""

    def _asked(self) -> Asked:
        if not self.server.knows(self.headers.get("Host", "")):
            raise RefusedError(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this machine is not known as {self.headers.get('Host', '')!r:.80}; "
                "start with --host-name NAME to have it answer to a name",
            )
        if self.command not in ("GET", "HEAD"):
            self._check_from_here()
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "the request must say its length")
        url = urlsplit(self.path)
        try:
            path = tuple(unquote(part, errors="strict") for part in url.path.split("/")[1:])
            query = dict(parse_qsl(url.query, errors="strict", max_num_fields=20))
        except ValueError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the address is not valid UTF-8") from error
        if not url.path.startswith("/") or url.netloc:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the address must begin with a slash")
        method = "GET" if self.command == "HEAD" else self.command
        proceed, self._proceed = self._proceed, None
        return Asked(method, path, query, self.headers, int(length), self.rfile, int(length), proceed)

    def _check_from_here(self) -> None:
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "same-origin")
        if site not in ("same-origin", "none") or (
            origin is not None and urlsplit(origin).netloc != self.headers.get("Host")
        ):
            raise RefusedError(HTTPStatus.FORBIDDEN, "only this server's own page may ask for that")

    def _send(self, answer: Answer) -> None:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(answer.body.open("rb")) if isinstance(answer.body, Path) else None
            self.send_response(answer.status)
            for name, value in {**HEADERS, "Cache-Control": "no-store", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Type", answer.kind)
            if file is not None:
                self.send_header("Content-Length", str(file.seek(0, 2)))
                file.seek(0)
            elif isinstance(answer.body, bytes):
                self.send_header("Content-Length", str(len(answer.body)))
            else:
                self.close_connection = True
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command == "HEAD":
                return
            if file is not None:
                shutil.copyfileobj(file, self.wfile, BLOCK)
            elif isinstance(answer.body, bytes):
                self.wfile.write(answer.body)
            else:
                assert not isinstance(answer.body, Path)
                self._stream(answer.body)

    def _stream(self, parts: Iterator[bytes]) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):  # the reader has gone
            for part in parts:
                self.wfile.write(part)

    def _drain(self, asked: Asked) -> None:
        """Read what is left of a body: closing at once would reset the connection under the answer."""
        self.connection.shutdown(socket.SHUT_WR)
        end, left = time.monotonic() + PATIENCE, min(asked.unread, DRAINED)
        while left > 0 and time.monotonic() < end and (block := self.rfile.read1(BLOCK)):  # type: ignore[attr-defined]
            left -= len(block)


def _said(status: HTTPStatus, words: object) -> Answer:
    return Answer.json({"error": by_name(words)}, status)
