"""Keeps secrets out of what a step prints, logs and records.

text -> text with `***` in place of tokens and passwords

Secrets are: the values of environment variables that are named like secrets, whatever they look like; texts that look
like a token of a service that a step uses; and the user and password in an address.
"""

import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any, TextIO

MASK = "***"
NAMES = re.compile(r"WEBHOOK|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
MIN_CHARS = 8  # length of a value: shorter ones would mask ordinary words
# user:password@ in an address; AWS's secrets have slashes, and so has an image with port and digest, which is no secret
ADDRESS = r"(?<=://)[^/\s:@]{0,256}:[^\s@]{1,256}(?=@(?!sha256:[0-9a-f]{64}\b))"
TOKENS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}"  # the Hub
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # AWS
    r"|\bya29\.[\w.-]{20,}"  # Google, valid for an hour
    r"|\bAIza[\w-]{35}|\bGOCSPX-[\w-]{20,}"  # Google, API keys and OAuth secrets
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{36,}"  # GitHub
    r"|\bglpat-[\w-]{20,}"  # GitLab
    r"|\bsk-[\w-]{20,}"  # OpenAI, Anthropic
    r"|\bxox[abeoprs]-[\w-]{10,}|(?<=hooks\.slack\.com/)[\w/-]{20,}"  # Slack
    r"|\b(?:npm|dckr_pat|pypi|api_org)[_-][\w-]{20,}"  # registries, organisations of the Hub
    r"|(?<![\w-])eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+"  # a JSON web token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    rf"|{ADDRESS}",
    re.DOTALL,
)
IN_ADDRESS = re.compile(ADDRESS)
AUTHORIZATION = re.compile(r"(?i:(?<=bearer ))[\w.~+/=-]{8,}")  # may be a word in prose: masked, but no proof


def mask(text: str) -> str:
    """Returns the text without secrets."""
    text = IN_ADDRESS.sub(MASK, text)  # first: the rules below would mask a part of it, and hide the rest from it
    values = _values(tuple(sorted((name, value) for name, value in os.environ.items() if NAMES.search(name))))
    if values:
        text = values.sub(MASK, text)
    return AUTHORIZATION.sub(MASK, TOKENS.sub(MASK, text))


def masked(value: Any) -> Any:
    """Returns a JSON value without secrets in its texts; keys stay."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {key: masked(inner) for key, inner in value.items()}
    return [masked(inner) for inner in value] if isinstance(value, list) else value


@cache
def _values(variables: tuple[tuple[str, str], ...]) -> re.Pattern | None:
    """Returns the pattern of these variables' secrets, the longest first, because one may contain another."""
    secrets = {value for _, value in variables if len(value) >= MIN_CHARS and not _is_path(value)}
    return re.compile("|".join(map(re.escape, sorted(secrets, key=len, reverse=True)))) if secrets else None


def _is_path(value: str) -> bool:
    """Tells whether a value names a file, like GOOGLE_APPLICATION_CREDENTIALS: errors about it must name it too."""
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
    """Masks everything that this process prints from here on, log lines and tracebacks included."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, MaskedStream):
            setattr(sys, name, MaskedStream(stream))
