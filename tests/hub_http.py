"""How the test Hub reads a request and sends an answer, faults included; what it answers is in hub_calls.py."""

import io
import json
import os
import re
import socket
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

_PIECE_BYTES = 1 << 20


class Answer(NamedTuple):
    """A call and its answer: status 0 is a connection that a fault cut instead; `size` is the content's bytes that were sent."""

    call: str
    method: str
    path: str
    status: int
    size: int


class RefusedError(Exception):
    """An answer that is no success; clients tell some apart by `code` (X-Error-Code)."""

    def __init__(self, status, message, code=None, headers=()):
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | dict(headers)


class Requests(BaseHTTPRequestHandler):
    """Reads a request, finds its route, lets the faults befall it and sends the answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and content are two packets, and the second would wait for an answer to the first
    routes = ()

    def _answer(self):
        url = urlsplit(self.path)
        self.query, self.fault, self.call, self._read = parse_qs(url.query), None, "unknown", False
        try:
            for call, method, pattern, handler in self.routes:
                match = re.fullmatch(pattern, url.path)
                if match and self.command == method:
                    self.call = call
                    return self._befall() or getattr(self, handler)(*(part and unquote(part) for part in match.groups()))
            raise RefusedError(404, "Sorry, we can't find the page you are looking for.")
        except RefusedError as error:
            self.send(error.status, json.dumps({"error": error.message}).encode(), error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_):
        pass

    def _befall(self):
        """Whether a fault has ended the call."""
        befalling = [fault for fault in [*self.server.faults] if fault.matches(self.call, self.path)]  # each of them counts the call
        self.fault = befalling[0] if befalling else None
        if self.fault is None or self.fault.kind in ("lost", "half", "flip"):
            return False
        if self.fault.kind in ("stop", "hold"):
            self.fault.go.wait(60)
        if self.fault.kind == "hold":
            return False
        if self.fault.kind in ("cut", "stop"):
            self._cut(0)
            return True
        messages = {401: "Invalid credentials in Authorization header", 403: "Forbidden", 404: "Repository not found", 429: "Slow down"}
        message = messages.get(self.fault.kind, "Internal Error - We're working hard to fix this as soon as possible!")
        code = "RepoNotFound" if self.fault.kind == 404 else None
        raise RefusedError(self.fault.kind, message, code, {"Retry-After": "1"} if self.fault.kind == 429 else {})

    def _cut(self, sent):
        self.server.answers.append(Answer(self.call, self.command, self.path, 0, sent))
        self.close_connection = True
        with suppress(OSError):  # a client that is gone
            self.connection.shutdown(socket.SHUT_RDWR)

    def body(self):
        """The request's content, in pieces; to be read once."""
        self._read = True
        left = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        while left and (piece := self.rfile.read(min(left, _PIECE_BYTES))):
            left -= len(piece)
            yield piece

    def content(self):
        """The request's content, whole."""
        return b"".join(self.body())

    def json(self, value, headers=()):
        self.send(200, json.dumps(value).encode(), headers)

    def send(self, status, content, headers=(), size=None):
        """Answer with bytes, or with what an open file holds from where it stands, `size` bytes."""
        for _ in () if self._read else self.body():
            pass  # the next request begins where this one ends
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        size = len(content) if isinstance(content, bytes) else size
        if self.fault and self.fault.kind == "lost":
            self._cut(0)
            return
        damaged = self.fault.kind if self.fault else None
        assert damaged not in ("half", "flip") or (size and self.command != "HEAD"), f"{self.path}: nothing to damage in this answer"
        answer = Answer(self.call, self.command, self.path, status, 0 if self.command == "HEAD" else size)
        if damaged != "half":
            self.server.answers.append(answer)  # before the client can have it all and look
        self.send_response(status)
        for key, value in ({"Content-Length": str(size), "Content-Type": "application/json"} | dict(headers)).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        until = size // 2 if damaged == "half" else size
        sent = 0
        while sent < until and (piece := file.read(min(_PIECE_BYTES, until - sent))):
            if damaged == "flip" and sent <= size // 2 < sent + len(piece):
                at = size // 2 - sent
                piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
            self.wfile.write(piece)
            sent += len(piece)
        if damaged == "half":
            self._cut(sent)

    def send_range(self, file, headers):
        """Answer with an open file, or with the part of it that the client asked for."""
        size = file.seek(0, os.SEEK_END)
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"} | headers
        if wanted is None or wanted.groups() == ("", ""):
            file.seek(0)
            return self.send(200, file, headers, size)
        start = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        stop = min(int(wanted[2]) + 1, size) if wanted[1] and wanted[2] else size
        if start >= stop:
            return self.send(416, b"", headers | {"Content-Range": f"bytes */{size}"})
        file.seek(start)
        return self.send(206, file, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}, stop - start)
