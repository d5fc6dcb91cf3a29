"""Speaks JSON over HTTP to a registry, with a token, and tells transient failures from permanent ones.

server, token -> answers; OSError: the registry is away, or busy; ValueError: it refuses
"""

import base64
import os
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from posttrain.config.servers import is_private
from posttrain.pages import wording

TIMEOUT_SECONDS = (5.0, 30.0)  # for the connection, and for each wait on an answer
TRY_SECONDS = 120.0  # from the first attempt to the last
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 30.0  # between attempts; doubled each time
MAX_CHARS = 300  # of an answer, in an error
BUSY = 429

Json = dict[str, Any]
T = TypeVar("T")


def authorization(env: str, username: str | None = None) -> str:
    """Returns the header for the token, or the user's password, that a variable holds; empty if it holds none."""
    token = os.environ.get(env, "").strip()
    if not token:
        return ""
    if not token.isascii() or not token.isprintable():
        raise ValueError(f"{env}: holds no token, but several lines or other characters; set it again")
    if username is None:
        return f"Bearer {token}"
    return f"Basic {base64.b64encode(f'{username}:{token}'.encode()).decode()}"


def persistently(work: Callable[[], T]) -> T:
    """Does the work, and again for some minutes while the registry is away.

    Raises:
        OSError: it is away still.
    """
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

    wait = wait_exponential(FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS)
    retrying = Retrying(
        retry=retry_if_exception_type(OSError), stop=stop_after_delay(TRY_SECONDS), wait=wait, reraise=True
    )
    return retrying(work)


class Api:
    """The API of one server, until it is closed."""

    def __init__(self, server: str, root: str, header: str):
        """Opens no connection yet.

        Args:
            root: the path of the API below the server's address.
            header: see `authorization`.

        Raises:
            ValueError: the header would be sent in plain text.
        """
        import requests

        if header and not is_private(server):
            raise ValueError(f"{server}: the token would cross a network in plain text: give an https:// address")

        self.server, self.root, self.header = server, root, header
        self.session = requests.Session()
        self.session.auth = self._sign  # or requests would take what ~/.netrc has for this host

    def __enter__(self) -> "Api":
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def _sign(self, request: Any) -> Any:
        if self.header:
            request.headers["Authorization"] = self.header
        return request

    def get(self, path: str, *, absent: int | None = None, **query: str) -> Json | None:
        """Reads an object; None if the answer has the status `absent`."""
        return self._ask("GET", path, params=query, absent=absent)

    def post(self, path: str, body: Json, *, there: int | None = None) -> Json | None:
        """Creates an object; None if the answer has the status `there`: somebody else was faster."""
        return self._ask("POST", path, json=body, absent=there)

    def _ask(self, method: str, path: str, *, absent: int | None, **words: Any) -> Json | None:
        import requests

        url, host = f"{self.server}{self.root}{path}", urlsplit(self.server).netloc
        try:
            with self.session.request(method, url, timeout=TIMEOUT_SECONDS, allow_redirects=False, **words) as answered:
                if answered.status_code == absent:
                    return None
                _check(answered, f"{host}: {method} {self.root}{path}")
                return _parsed(answered, f"{host}: {method} {self.root}{path}")
        except requests.exceptions.SSLError as error:
            raise ValueError(
                f"{host}: its certificate is refused: {error}; set REQUESTS_CA_BUNDLE to the file of its authority"
            ) from None
        except requests.exceptions.ConnectTimeout:
            raise TimeoutError(f"{host}: takes no connection within {TIMEOUT_SECONDS[0]:g} seconds") from None
        except requests.exceptions.Timeout:
            raise TimeoutError(f"{host}: gives no answer within {TIMEOUT_SECONDS[1]:g} seconds") from None
        except requests.exceptions.ConnectionError as error:
            raise ConnectionError(f"{host}: cannot be reached: {_cause(error)}") from None


def _cause(error: Exception) -> str:
    """Returns what the operating system said, without the layers of libraries around it."""
    cause = error.args[0] if error.args else error
    cause = getattr(cause, "reason", cause)
    return str(cause).rpartition(": ")[2][:MAX_CHARS] or type(error).__name__


def _check(answered: Any, what: str) -> None:
    """Raises for an answer that is none: OSError if another attempt may bring one."""
    status = answered.status_code
    if status < 300:
        return
    text = wording.line(answered.text[:MAX_CHARS])
    if status >= 500 or status == BUSY:
        raise ConnectionError(f"{what} answers {status}: {text}")
    if status < 400:
        raise ValueError(f"{what} answers {status}, to {answered.headers.get('Location', 'elsewhere')[:80]!r}: "
                         "it wants people to sign in; give the address of the API itself, and a token")  # fmt: skip
    if status in (401, 403):
        raise ValueError(f"{what} answers {status}: the token is missing, or may not do this: {text}")
    raise ValueError(f"{what} answers {status}: {text}")


def _parsed(answered: Any, what: str) -> Json:
    import requests

    try:
        content = answered.json()
    except requests.exceptions.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        text = wording.line(answered.text[:MAX_CHARS])
        raise ValueError(f"{what} answers with something else than a JSON object: {text!r}; is this its address?")
    return content
