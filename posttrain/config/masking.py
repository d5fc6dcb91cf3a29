"""Keeps secrets out of what a step prints, logs and records.

text -> the same with `***` in place of tokens and passwords

What counts: the values of environment variables that are named like secrets, whatever they look like; what looks like a
token of a service that a step speaks to; and the password in an address.
"""

import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any, TextIO

MASK = "***"
NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
MIN_CHARS = 8  # of a value: a shorter one would mask words that are no secrets
TOKENS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}"  # the Hub
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # AWS
    r"|\bya29\.[\w.-]{20,}"  # Google, of an hour
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}"  # GitHub
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+"  # a JSON web token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)",  # user:password@ of an address
    re.DOTALL,
)
AUTHORIZATION = re.compile(r"(?i:(?<=bearer ))[\w.~+/=-]{8,}")  # in prose it may be a word: masked, but no proof


def mask(text: str) -> str:
    """The text without secrets."""
    values = _values(tuple(sorted((name, value) for name, value in os.environ.items() if NAMES.search(name))))
    if values:
        text = values.sub(MASK, text)
    return AUTHORIZATION.sub(MASK, TOKENS.sub(MASK, text))


@cache
def _values(variables: tuple[tuple[str, str], ...]) -> re.Pattern | None:
    """What finds the secrets among these environment variables; the longest first, for one may hold another."""
    found = {value for _, value in variables if len(value) >= MIN_CHARS and not _is_path(value)}
    return re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True)))) if found else None


def _is_path(value: str) -> bool:
    """GOOGLE_APPLICATION_CREDENTIALS, say, names a file, and an error about it must name it too."""
    try:
        return Path(value).exists()
    except (OSError, ValueError):  # too long for a name, or with a null byte
        return False


class MaskedStream:
    """A text stream that masks what is written to it."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(mask(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def mask_output() -> None:
    """From here on this process prints no secret: neither by logging nor in a traceback."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, MaskedStream):
            setattr(sys, name, MaskedStream(stream))
