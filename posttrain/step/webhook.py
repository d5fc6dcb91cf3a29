"""Sends messages about a run to a webhook, in Slack's format, with text that other tools can read too.

text, lines -> one POST of JSON, or a warning in the log

Nothing fails for want of a listener: whatever goes wrong is one line, and never names the URL, which is the secret.
"""

import http.client
import json
import logging
import os
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from posttrain.config import masking
from posttrain.config.notify import WEBHOOK_ENV
from posttrain.pages import wording

TIMEOUT_SECONDS = 5.0  # for the connection, and for each wait on an answer
MAX_CHARS = 2900  # Slack refuses a block of text over 3,000
SENT = "sent"

logger = logging.getLogger(__name__)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error: it would turn the POST into a GET without the message."""

    def redirect_request(self, *_):
        return None


def check() -> None:
    """Checks that the URL is there and is one, without a word to the server.

    Raises:
        ValueError: it is not.
    """
    url = os.environ.get(WEBHOOK_ENV, "").strip()
    if not url:
        raise ValueError(f"{WEBHOOK_ENV} is not set: set it to the URL of the webhook, or remove the section notify")
    if _parts_of(url) is None:
        raise ValueError(f"{WEBHOOK_ENV} is not the URL of a webhook: give https://host/path")


def send(title: str, lines: list[str]) -> str:
    """Sends a message, and returns `sent` or why that failed. It raises nothing and waits for seconds at most."""
    try:
        check()
        _post(os.environ[WEBHOOK_ENV].strip(), message(title, lines))
    except (OSError, ValueError, http.client.HTTPException) as error:
        outcome = f"the message was not sent: {_reason(error)}"
        logger.warning("%s", outcome)
        return outcome
    return SENT


def message(title: str, lines: list[str]) -> dict:
    """Returns the message: as text, and as blocks for Slack."""
    rest = "\n".join(f"• {_escaped(line)}" for line in lines)
    first = _escaped(title)
    text = f"*{first}*\n{rest}"[:MAX_CHARS].strip()
    return {"text": text, "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": text}}]}


def _escaped(text: str) -> str:
    """Escapes a text of unknown origin, so that it can neither mention people nor make links, and masks secrets."""
    text = wording.line(masking.mask(text))
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(char, entity)
    return text


def _post(url: str, content: dict) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "posttrain"}
    request = urllib.request.Request(url, json.dumps(content).encode(), headers, method="POST")
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_SECONDS):
        pass


def _parts_of(url: str) -> object | None:
    try:
        parts = urlsplit(url)
        return parts if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def _reason(error: Exception) -> str:
    """Says what went wrong without the text of the error, which may contain the URL."""
    if isinstance(error, urllib.error.HTTPError):
        with error:
            return f"it answered {error.code}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_SECONDS:g} seconds"
    if isinstance(cause, OSError):
        return f"it cannot be reached ({cause.strerror or type(cause).__name__})"
    return f"{WEBHOOK_ENV} is missing or no URL" if isinstance(cause, ValueError) else type(cause).__name__
