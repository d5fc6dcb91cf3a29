import pytest

from posttrain.config import masking
from validators import personal_data

# Put together here, so that nobody takes this file for one that leaks something.
FOUND = {
    "e-mail address": ["jane.doe+tasks@mail.acme.org", "Write to <j@acme.co.uk>."],
    "phone number": [
        "+49 30 901820",
        "Call (650) 253-0000",
        "1-202-456-1111",
        "+1 (650) 253 0000",
        "+49 301 234",
        "+49 3012 3456 7890 1",
    ],
    "credit card number": ["4111" + "1111" * 3, "4111 1111 1111 1111", "3782-822463-10005", "5555555555554" + "444."],
    "IBAN": [
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST1234569876" + "5432",
        "NO93 8601 1117 947",
        "MT26" + "1234" * 7 + "56",
    ],
    "US social security number": ["536-90-" + "4399"],
    "AWS access key": ["AKIA" + "ABCDEFGH234567AB"],
    "GitHub token": ["ghp_" + "a1B2" * 9, "github_pat_" + "a" * 82],
    "Google API key": ["AIza" + "Sy_-a" * 7],
    "Slack token": ["xoxb-" + "1234567890-abc", "https://hooks.slack.com/services/" + "T0AB/B0CD/xyz123"],
    "private key": ["-----BEGIN " + "PRIVATE KEY-----", "-----BEGIN RSA " + "PRIVATE KEY-----"],
    "JSON web token": ["eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0In0." + "c2lnbmF0dXJl"],
    "Hugging Face token": ["hf_" + "aB" * 17],
}
NOT_FOUND = [
    "user@example.com and admin@mail.example.org",
    "Use @decorators, a@b and 5@ 3 each.",
    "by 2026-03-04, between 10:30 and 11:45, version 1.2.3.4",
    "(555) 555-0123",
    "+49 30 123 and +49 3012 3456 7890 12",  # 7 and 16 digits
    "1234567890123456 is no card, 4111 1111 1111 1112 neither",
    "0000 0000 0000 0000",
    "2" * 17,  # its check digit is right
    "DE89 3704 0044 0532 0130 01",
    "MT08" + " 1234" * 7 + " 567",  # 35 characters with a right check digit
    "000-12-3456, 666-12-3456, 900-12-3456, 123-00-4567",
    "The area is 1000000000 by 2500000000 over 5000 years.",
    "3.14159265358979323846",
    "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]",
    "eyJ.is.short and hf_hub and ghp_ and AKIA",
    "",
]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in FOUND.items() for text in texts])
def test_what_is_known_is_found(name, text):
    assert personal_data.found_in(text) == [name]
    assert personal_data.found_in(f'{{"value": "{text}"}}\n') == [name]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_only_looks_like_it_is_not(text):
    assert personal_data.found_in(text) == []


def test_every_pattern_is_tried_here():
    assert [pattern.name for pattern in personal_data.PATTERNS] == list(FOUND)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", ["a", "1", "1 ", "+1 ", "1-", "a.", "A1", "@a.", "eyJaaaaaaaaa.", "- ", "4111 "])
def test_a_long_text_takes_no_long_time(piece):
    personal_data.found_in(piece * 40_000 + "@")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text", ["eyJ" * 200_000, "-eyJaaaaaaaaaaa" * 50_000, "://a:" + "b" * 600_000, "://a:b" * 100_000]
)
def test_crafted_text_takes_no_more_time_than_other_text(text):
    personal_data.found_in(text)
    masking.mask(text)
