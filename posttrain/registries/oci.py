"""Speaks to an OCI registry: uploads blobs and manifests, and skips what is there.

address, credentials of Docker's config.json -> HTTP requests of the distribution API
(https://github.com/opencontainers/distribution-spec/blob/main/spec.md)
"""

import base64
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADDRESS = re.compile(r"oci://(?P<host>[^/]+)/(?P<name>[a-z0-9][a-z0-9._/-]*):(?P<tag>\w[\w.-]{0,127})")
LOCAL = re.compile(r"(localhost|127\.0\.0\.1)(:\d+)?")  # hosts that are spoken to without TLS, as Docker does
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TIMEOUT_SECONDS = 600
CHUNK = 1 << 20

Content = Callable[[], Iterator[bytes]]  # gives the bytes of a blob, as often as it is asked


@dataclass(frozen=True)
class Address:
    """`oci://host/name:tag`."""

    host: str
    name: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Raises ValueError if the text is not one."""
        if not (match := ADDRESS.fullmatch(text)):
            raise ValueError(f"{text!r} is not the address of an OCI artifact: give oci://host/name:tag, in lower case")
        return cls(**match.groupdict())

    @property
    def url(self) -> str:
        """The root of the repository in the registry's API."""
        return f"{'http' if LOCAL.fullmatch(self.host) else 'https'}://{self.host}/v2/{self.name}"


def credentials(host: str) -> tuple[str, str] | None:
    """Returns user and password for a host from Docker's config.json, which `DOCKER_CONFIG` names the folder of."""
    file = Path(os.environ.get("DOCKER_CONFIG", "~/.docker")).expanduser() / "config.json"
    if not file.is_file():
        return None
    entry = (json.loads(file.read_text(encoding="utf-8")).get("auths") or {}).get(host) or {}
    user, _, password = base64.b64decode(entry.get("auth", "")).decode().partition(":")
    return (user, password) if user else None


class Registry:
    """One repository of a registry, until it is closed."""

    def __init__(self, address: Address):
        import requests

        self.address, self.credentials = address, credentials(address.host)
        self.session = requests.Session()

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def ask(self, method: str, url: str, *, good: tuple[int, ...], **words: Any) -> Any:
        """Sends a request, with a token where the registry asks for one.

        Raises:
            ValueError: the registry answers with another status than one of `good`.
            OSError: it cannot be reached.
        """
        answered = self.session.request(method, url, timeout=TIMEOUT_SECONDS, **words)
        if answered.status_code not in good:
            raise ValueError(
                f"{self.address.host}: {method} {url} answers {answered.status_code}: {answered.text[:300]}"
            )
        return answered

    def sign_in(self) -> None:
        """Takes the way to sign in that the registry asks for: none, a password, or a token for this repository."""
        answered = self.ask("GET", f"{self.address.url.partition('/v2/')[0]}/v2/", good=(200, 401))
        challenge = answered.headers.get("WWW-Authenticate", "")
        if answered.status_code == 200:
            return
        if not challenge.lower().startswith("bearer"):
            if self.credentials is None:
                raise ValueError(f"{self.address.host}: asks for a password; add it to config.json in DOCKER_CONFIG")
            self.session.auth = self.credentials
            return
        parameters = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        asked = {"service": parameters.get("service", ""), "scope": f"repository:{self.address.name}:pull,push"}
        token = self.ask("GET", parameters["realm"], good=(200,), params=asked, auth=self.credentials).json()
        self.session.headers["Authorization"] = f"Bearer {token.get('token') or token['access_token']}"

    def push_blob(self, digest: str, content: Content) -> bool:
        """Uploads a blob unless the registry has it; tells whether it was uploaded."""
        url = self.address.url
        if self.ask("HEAD", f"{url}/blobs/{digest}", good=(200, 404)).status_code == 200:
            return False
        where = self._location(self.ask("POST", f"{url}/blobs/uploads/", good=(202,)))
        headers = {"Content-Type": "application/octet-stream"}
        where = self._location(self.ask("PATCH", where, good=(202,), data=content(), headers=headers))
        self.ask("PUT", where, good=(201,), params={"digest": digest})
        return True

    def push_manifest(self, manifest: bytes) -> None:
        """Uploads the manifest under the address's tag."""
        url, headers = f"{self.address.url}/manifests/{self.address.tag}", {"Content-Type": MANIFEST}
        self.ask("PUT", url, good=(201,), data=manifest, headers=headers)

    def _location(self, answered: Any) -> str:
        from urllib.parse import urljoin

        return urljoin(answered.url, answered.headers["Location"])
