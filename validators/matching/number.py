"""Matcher `number`: the last number of an answer is the reference's.

reference -> what scores an answer against it

    10,000   $10,000   10 000   10'000   10.000,00   1e4   1 x 10^4   20000/2   10k   0.01 million   1000000 %

are all one number. A percentage is a hundredth: `35 %` is 0.35, not 35. What stands behind letters (`x2`), in a time
(`10:30`), a version or a date with slashes is no number. A number is exact, however many digits it has.
"""

import re
import unicodedata
from decimal import Decimal, localcontext

from posttrain.config import MatchOptions
from validators.matching import Reference, Scorer

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
SCALES = {"thousand": 3, "k": 3, "million": 6, "billion": 9, "trillion": 12}
NUMBER = re.compile(
    r"""
    (?<![\w^])(?<!\d[.,:/'’])                # neither inside a word or a longer number nor part of a date or a time
    (?P<sign>[-+]?)(?:[$€£¥]\s?)?
    (?P<body>
        10(?:\^|\*\*)\{?(?P<ten>-?\d{1,4})\}?     # 10^4
      | [1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?        # 10,000.5
      | [1-9]\d{0,2}(?:\.\d{3})+,\d+             # 10.000,5
      | [1-9]\d{0,2}(?:\.\d{3}){2,}              # 10.000.000
      | [1-9]\d{0,2}(?:[ '’]\d{3})+(?:[.,]\d+)?  # 10 000,5
      | \d+[.,]\d+ | \d+ | (?<!\.)\.\d+
    )
    (?:/(?P<divisor>\d+(?:\.\d+)?))?
    (?:e(?P<exponent>[-+]?\d{1,4})|\s?(?:[x×·*]|\\times|\\cdot)\s?10\s?(?:\^|\*\*)\s?\{?(?P<power>-?\d{1,4})\}?)?
    (?![.,:/]?\d)(?!\s?(?:\^|\*\*)\s?\{?-?\d)  # the whole of it
    (?:(?P<k>k)(?!\w)|\s?(?P<scale>thousand|million|billion|trillion)\b)?
    (?P<percent>\s?(?:\\?%|percent\b|per\ cent\b))?
    """,
    re.VERBOSE | re.IGNORECASE,
)


def number(reference: Reference, options: MatchOptions) -> Scorer:
    """Builds a scorer: 1 for an answer whose last number equals the reference's within the tolerance, else 0.

    Raises:
        ValueError: the reference holds no number.
    """
    wanted = last_number(str(reference)) if isinstance(reference, str | int | float) else None
    if wanted is None or isinstance(reference, bool):
        raise ValueError(f"reference {str(reference)[:80]!r} holds no number: give a number, or another answer_match")

    def score(answer: str) -> float:
        given = last_number(answer)
        return float(given is not None and is_close(given, wanted, options))

    return score


def is_close(given: Decimal | int, wanted: Decimal | int, options: MatchOptions) -> bool:
    """Tells whether a number equals the reference's, or lies within the larger of the two tolerances."""
    given, wanted = Decimal(given), Decimal(wanted)
    if given == wanted:
        return True
    absolute, relative = (Decimal(str(one)) for one in (options.absolute_tolerance, options.relative_tolerance))
    with localcontext(prec=50, traps=[]):  # what is too large becomes infinite, and infinitely far off
        allowed = max(absolute, relative * abs(wanted))
        return abs(given - wanted) <= allowed


def last_number(text: str) -> Decimal | None:
    """The last number of a text; None where it holds none."""
    last = None
    for match in NUMBER.finditer(_prepared(text)):
        last = _value(match)
    return last


def _prepared(text: str) -> str:
    """Powers as `^4` before NFKC makes 10⁴ into 104; every minus and blank of one kind; LaTeX's 10{,}000 as 10,000."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda match: "^" + match[0].translate(SUPERSCRIPTS), text)
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("{,}", ",").replace("\\$", "$")
    return re.sub(r"[^\S\n]", " ", text)


def _value(match: re.Match) -> Decimal | None:
    """None: a fraction of nothing."""
    value = Decimal(match["sign"] + ("1" if match["ten"] else _decimal(match["body"])))
    power = int(match["exponent"] or match["power"] or match["ten"] or 0)
    power += SCALES.get((match["scale"] or match["k"] or "").lower(), 0) - (2 if match["percent"] else 0)
    divisor = Decimal(match["divisor"] or 1)
    if not divisor:
        return None
    with localcontext(prec=max(50, len(match[0]) + 10)):
        return (value / divisor).scaleb(power)


def _decimal(body: str) -> str:
    """With a point before the decimals and nothing between the thousands."""
    body = re.sub(r"[ '’]", "", body)
    if "," in body and "." in body:
        thousands, point = (",", ".") if body.rindex(".") > body.rindex(",") else (".", ",")
        return body.replace(thousands, "").replace(point, ".")
    if re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+", body):
        return body.replace(",", "")
    if body.count(".") > 1:
        return body.replace(".", "")
    return body.replace(",", ".")
