"""Finds secrets and personal data by well-known patterns, and reports only their kind, never the match itself.

text -> names of the patterns that match

The patterns are our own because no light library has them: detect-secrets imports an HTTP client, has code that sends
secrets to their issuer, and knows neither personal data nor Hub tokens. Numbers count only with a valid check digit;
values reserved for documentation (example.com, 555-01xx) do not count.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression, and what else must be true of a match."""

    name: str
    looks: re.Pattern
    holds: Callable[[str], bool] = lambda match: True
    sign: str = ""  # occurs in every match, so that most searches can be skipped

    def is_in(self, text: str) -> bool:
        return self.sign in text and any(self.holds(match.group()) for match in self.looks.finditer(text))


def found_in(text: str) -> list[str]:
    """Names of the patterns that match, in the order of `PATTERNS`."""
    return [pattern.name for pattern in PATTERNS if pattern.is_in(text)]


def _digits(text: str) -> list[int]:
    return [int(char) for char in text if char in "0123456789"]


def _is_personal_email(text: str) -> bool:
    """Tells whether the domain is not reserved for documentation (RFC 2606)."""
    domain = text.rpartition("@")[2].lower()
    return not re.search(r"(^|\.)(example\.(com|net|org)|example|test|invalid|localhost)$", domain)


def _is_phone(text: str) -> bool:
    """Tells whether it has at most E.164's 15 digits and is not reserved for films and books."""
    digits = "".join(map(str, _digits(text)))
    return 8 <= len(digits) <= 15 and not re.search(r"55501\d\d$", digits)


def _is_card(text: str) -> bool:
    """Tells whether Luhn's check digit is right (ISO/IEC 7812) and the digits are not all the same."""
    digits = _digits(text)
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """ISO 13616: the first four characters moved to the end, letters as numbers from 10, must leave 1 modulo 97."""
    text = text.replace(" ", "")
    return 15 <= len(text) <= 34 and int("".join(str(int(char, 36)) for char in text[4:] + text[:4])) % 97 == 1


PATTERNS = (
    Pattern(
        "e-mail address",
        re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])", re.ASCII),
        _is_personal_email,
        sign="@",
    ),
    Pattern(
        "phone number",
        re.compile(
            r"(?<![\w+.-])(?:"
            r"\+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,4}\)?){2,5}"  # international
            r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4}"  # North America
            r")(?![\w-])",
            re.ASCII,
        ),
        _is_phone,
    ),
    Pattern(
        "credit card number",
        re.compile(
            r"(?<![\w.+-])(?<!\d )(?:"
            r"[2-6]\d{12,18}|[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?|3\d{3}([ -])\d{6}\2\d{5}"
            r")(?![\w-])(?! \d)",
            re.ASCII,
        ),
        _is_card,
    ),
    Pattern(
        "IBAN",
        re.compile(r"(?<!\w)[A-Z]{2}\d\d(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)(?!\w)", re.ASCII),
        _is_iban,
    ),
    Pattern(
        "US social security number",
        re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])", re.ASCII),
    ),
    Pattern("AWS access key", re.compile(r"(?<![A-Z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?![A-Z0-9])")),
    Pattern("GitHub token", re.compile(r"gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{82}")),
    Pattern("Google API key", re.compile(r"AIza[A-Za-z0-9_-]{35}")),
    Pattern(
        "Slack token",
        re.compile(r"xox[abeoprs]-[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/T[A-Z0-9]+/B[A-Z0-9]+/\w+"),
    ),
    Pattern("private key", re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")),
    Pattern(
        "JSON web token",  # its start only behind another sign: elsewhere every `eyJ` would be looked at to the end
        re.compile(r"(?<![\w-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}", re.ASCII),
    ),
    Pattern("Hugging Face token", re.compile(r"(?<!\w)hf_[A-Za-z0-9]{34}(?!\w)")),
)
