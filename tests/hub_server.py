"""A Hub on this machine: it describes repositories, sends their files, knows accounts and refuses."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Models are folders. With `accounts` a token that is not among them is refused."""

    repos: dict[str, Path] = {}
    licences: dict[str, str] = {}  # of repositories whose card names one
    datasets: set[str] = set()
    accounts: dict[str, dict] = {}  # token -> who that is
    writable: set[str] = set()  # repositories that any account may write to
    gated: set[str] = set()  # whose files are sent to accounts alone
    requests: list[tuple[str, str | None]] = []  # path, Authorization
    ranges: list[tuple[str, int]] = []  # name of a file of which a part was asked for, its last byte

    def do_GET(self):
        self.requests.append((self.path, self.headers.get("Authorization")))
        path = urlparse(self.path).path
        if self.accounts and self.token and self.token not in self.accounts:
            self.refuse(401, message="Invalid credentials in Authorization header")
        elif path == "/api/whoami-v2":
            self.reply(json.dumps(self.accounts[self.token]).encode(), {})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/auth-check/write", path):
            self.check_write(found[1])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/(.+))?", path):
            self.describe(found[1], found[3])
        elif found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/revision/(.+))?", path):
            self.describe_dataset(found[1])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+).*", path):
            self.list_files(self.repos[found[1]])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.send_file(found[1], found[3])
        else:
            self.refuse(404, "Not found")

    do_HEAD = do_GET

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def check_write(self, repo: str) -> None:
        if repo in self.writable:
            self.reply(b"", {})
        else:
            self.refuse(403) if repo in self.repos else self.refuse(404, "RepoNotFound")

    def describe(self, repo: str, revision: str | None) -> None:
        if repo not in self.repos:
            self.refuse(404, "RepoNotFound")
        elif revision not in (None, "main", "v1", COMMIT):
            self.refuse(404, "RevisionNotFound")
        else:
            folder = self.repos[repo]
            with_sizes = "blobs=true" in self.path.lower()
            files = [
                {"rfilename": name} | ({"size": (folder / name).stat().st_size} if with_sizes else {})
                for name in sorted(names(folder))
            ]
            card = {"cardData": {"license": self.licences[repo]}} if repo in self.licences else {}
            self.reply(json.dumps({"id": repo, "sha": COMMIT, "siblings": files} | card).encode(), {})

    def describe_dataset(self, repo: str) -> None:
        if repo in self.datasets:
            self.reply(json.dumps({"id": repo, "sha": COMMIT, "siblings": []}).encode(), {})
        else:
            self.refuse(404, "RepoNotFound")

    def list_files(self, folder: Path) -> None:
        files = [
            {"type": "file", "path": name, "oid": "0" * 40, "size": (folder / name).stat().st_size}
            for name in names(folder)
        ]
        self.reply(json.dumps(files).encode(), {})

    def send_file(self, repo: str, name: str) -> None:
        if repo in self.gated and self.token not in self.accounts:
            self.refuse(401, "GatedRepo")
            return
        body = (self.repos[repo] / name).read_bytes()
        if part := re.fullmatch(r"bytes=0-(\d+)", self.headers.get("Range", "")):
            self.ranges.append((name, int(part[1])))
            self.reply(body[: int(part[1]) + 1], {}, status=206)
            return
        self.reply(body, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'})

    def reply(self, body: bytes, headers: dict[str, str], *, status: int = 200) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status: int, code: str = "", *, message: str = "") -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": code, "X-Error-Message": message, "Content-Length": "0"}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    """The server, empty, with a cache of downloads of its own and no token."""
    from huggingface_hub import constants

    Hub.repos, Hub.accounts, Hub.requests, Hub.ranges = {}, {}, [], []
    Hub.datasets, Hub.writable, Hub.gated, Hub.licences = set(), set(), set(), {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    for name in ("HF_TOKEN", "HF_UPLOAD_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()
