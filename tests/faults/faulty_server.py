"""A small web server on this machine that fails when it is told to.

It gives the files that it is given, by whole or by range, and passes every other request on to a server of
the S3 protocol, if it is told of one. Faults are for so many requests, or for all.
"""

from __future__ import annotations

import hashlib
import http.client
import random
import re
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit

Fault = Literal[
    "500",  # InternalError of S3
    "503",  # SlowDown of S3
    "reset",  # the connection is cut instead of an answer
    "stall",  # half of the body, and then nothing
    "trickle",  # a byte every tenth of a second
    "truncate",  # half of the body, and then the connection is closed
    "corrupt",  # as many bytes as there should be, some of them wrong, others each time
    "corrupt_alike",  # the same wrong bytes each time
    "lost_answer",  # the request is done, but the connection is cut instead of an answer
    "ignore_range",  # the whole file where a part was asked for
    "redirect",  # to `FaultyServer.redirect_to`
]

_PASSED_ON = {"content-length", "content-type", "content-range", "etag", "last-modified", "location"}
_STALL_S = 30.0


@dataclass
class _Planned:
    fault: Fault
    method: str
    pattern: str
    times: int | None


@dataclass
class FaultyServer:
    """The server's side that a test holds."""

    url: str
    upstream: str | None
    files: dict[str, bytes] = field(default_factory=dict)
    """By path, as ``/a.wav``: what is served here."""
    redirect_to: str = ""
    gives_checksums: bool = True
    """Whether the upstream server's checksums are passed on."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of every request."""
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)
    _faults: list[_Planned] = field(default_factory=list)

    def fail(self, fault: Fault, *, method: str = "GET", at: str = "", times: int | None = 1) -> None:
        """Plans a fault for requests whose path holds ``at``; ``times=None``: for all of them."""
        self._faults.append(_Planned(fault, method, at, times))

    def reset(self) -> None:
        """Forgets files, faults and requests."""
        for forgotten in (self.files, self.requests, self._faults):
            forgotten.clear()
        self.redirect_to, self.gives_checksums, self.most_in_flight = "", True, 0

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, path))
            for planned in self._faults:
                if planned.method == method and planned.pattern in path and planned.times != 0:
                    if planned.times is not None:
                        planned.times -= 1
                    return planned.fault
        return None


@contextmanager
def faulty_server(upstream: str | None = None) -> Iterator[FaultyServer]:
    """Runs the server; ``upstream`` is the URL of one of the S3 protocol."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    state = FaultyServer(f"http://127.0.0.1:{server.server_address[1]}", upstream)
    server.state = state  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is its own."""

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _answer(self) -> None:
        state: FaultyServer = self.server.state  # type: ignore[attr-defined]
        body = self._body()
        fault = state.next_fault(self.command, self.path)
        with state.lock:
            state.in_flight += 1
            state.most_in_flight = max(state.most_in_flight, state.in_flight)
        try:
            with suppress(ConnectionError):  # who asked has gone
                self._fail_or_give(state, fault, body)
        finally:
            with state.lock:
                state.in_flight -= 1

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def _fail_or_give(self, state: FaultyServer, fault: Fault | None, body: bytes) -> None:
        if fault in ("500", "503"):
            code = "InternalError" if fault == "500" else "SlowDown"
            text = f"<Error><Code>{code}</Code><Message>{code.lower()}, says the test</Message></Error>"
            self._send(int(fault), {"Content-Type": "application/xml"}, text.encode())
        elif fault == "reset":
            self._reset()
        elif fault == "redirect":
            self._send(302, {"Location": state.redirect_to}, b"")
        else:
            status, headers, data = self._given(state, body, ranges=fault != "ignore_range")
            if fault == "lost_answer":
                self._reset()
            elif fault in ("stall", "truncate", "trickle"):
                self._send(status, headers, data, part=fault)
            else:
                self._send(status, headers, _corrupted(data, fault))

    def _given(self, state: FaultyServer, body: bytes, *, ranges: bool) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the right answer."""
        data = state.files.get(unquote(urlsplit(self.path).path))
        if data is not None:
            return self._part(data, ranges=ranges)
        if state.upstream is None:
            return 404, {}, b""
        connection = http.client.HTTPConnection(urlsplit(state.upstream).netloc, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        if not ranges:
            headers.pop("Range", None)
        connection.request(self.command, self.path, body or None, headers)
        response = connection.getresponse()
        data = response.read()
        found = {
            name: value
            for name, value in response.getheaders()
            if name.lower() in _PASSED_ON or (state.gives_checksums and name.lower().startswith("x-amz-"))
        }
        connection.close()
        return response.status, found, data

    def _part(self, data: bytes, *, ranges: bool) -> tuple[int, dict[str, str], bytes]:
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:16]}"'}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None or not ranges:
            return 200, headers, data
        start, end = int(match[1]), min(int(match[2] or len(data)) + 1, len(data))
        if start >= len(data):
            return 416, headers | {"Content-Range": f"bytes */{len(data)}"}, b""
        return (
            206,
            headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"},
            data[start:end],
        )

    def _send(self, status: int, headers: dict[str, str], data: bytes, *, part: str = "") -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        if not part:
            self.wfile.write(data)
            return
        self.close_connection = True
        state: FaultyServer = self.server.state  # type: ignore[attr-defined]
        half = data[: len(data) // 2]
        if part == "trickle":
            for byte in half:
                if state.ended.wait(0.1):
                    return
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
            return
        self.wfile.write(half)
        self.wfile.flush()
        if part == "stall":
            select.select([self.connection], [], [], _STALL_S)  # until who asked has gone

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return data


def _corrupted(data: bytes, fault: Fault | None) -> bytes:
    if fault not in ("corrupt", "corrupt_alike") or not data:
        return data
    wrong = bytearray(data)
    for place in range(0, len(wrong), 100):
        wrong[place] ^= 0x55 if fault == "corrupt_alike" else random.randint(1, 255)
    return bytes(wrong)
