"""A proxy between a client and a server on this machine that puts faults into chosen answers."""

import http.client
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{0}</Code><Message>{0} with a secret</Message></Error>'


class Faults:
    """`inject(text, times, fault)`: the next answers to requests with a text in `METHOD path` get a fault.

    `requests` are all requests, and `most_at_once` of them were made before another was answered.
    """

    def __init__(self):
        self._rules, self._lock, self.requests = [], threading.Lock(), []
        self._under_way = self.most_at_once = 0

    def inject(self, text, times, fault):
        """The fault.

        ("status", 503, "SlowDown"), ("answer", content of status 200), ("cut", bytes of the body), or ("slow", seconds).
        """
        self._rules.append([text, times, fault])

    def clear(self):
        self._rules.clear()
        self.requests.clear()
        self.most_at_once = 0

    @contextmanager
    def under_way(self):
        with self._lock:
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    def take_fault(self, method, path, headers):
        with self._lock:
            self.requests.append((method, path, headers.get("Range")))
            for rule in self._rules:
                if rule[0] in f"{method} {path}" and rule[1] > 0:
                    rule[1] -= 1
                    return rule[2]
        return None


@contextmanager
def proxy_to(url):
    """(address, Faults) of a proxy before the server at `url`."""
    faults, server = Faults(), urlsplit(url)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def _pass(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = faults.take_fault(self.command, unquote(self.path), self.headers)
            if fault and fault[0] == "status":
                text = ERROR.format(fault[2]).encode() if self.command != "HEAD" else b""
                self._answer(fault[1], [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))], text)
                return
            if fault and fault[0] == "answer":
                self._answer(200, [("Content-Type", "application/xml"), ("Content-Length", str(len(fault[1])))], fault[1])
                return
            if fault and fault[0] == "slow":
                time.sleep(fault[1])
            there = http.client.HTTPConnection(server.hostname, server.port, timeout=60)
            there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                there.putheader(name, value)
            there.endheaders(body or None)
            answer = there.getresponse()
            content = answer.read()
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in ("transfer-encoding", "connection")]
            if self.command != "HEAD" and not any(name.lower() == "content-length" for name, _ in headers):
                headers.append(("Content-Length", str(len(content))))
            there.close()
            self._answer(answer.status, headers, content[: fault[1]] if fault and fault[0] == "cut" else content)
            if fault and fault[0] == "cut":
                self.close_connection = True

        def _answer(self, status, headers, content):
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def _counted(self):
            with faults.under_way():
                self._pass()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _counted  # noqa: N815

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

        def handle_error(self, *_):
            """A client that went away."""

    proxy = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}", faults
    finally:
        proxy.shutdown()
        proxy.server_close()
