import io
import subprocess
import sys

import pytest

from posttrain.config import masking
from posttrain.config.masking import MaskedStream, mask

HUB_TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"401 for {HUB_TOKEN}, ask again", "401 for ***, ask again"),
        ("https://me:pa55@host/path", "https://***@host/path"),
        ("Authorization: Bearer abc.def-123456", "Authorization: Bearer ***"),
        ("AKIA" + "Q" * 16, "***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- rest", "*** rest"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE cut off", "***"),
        ("s3://AKIA" + "Q" * 16 + ":se/cr+et=@bucket/key", "s3://***@bucket/key"),
        (f"oci://host:5000/models/m@sha256:{'0' * 64}: pushed", f"oci://host:5000/models/m@sha256:{'0' * 64}: pushed"),
        (f"oci://me:pa55@host:5000/m@sha256:{'0' * 64}", f"oci://***@host:5000/m@sha256:{'0' * 64}"),
        ("https://me:pa55@sha256:80/x", "https://***@sha256:80/x"),
        ("github_pat_" + "a1" * 41, "***"),
        ("glpat-" + "a1" * 10 + " sk-ant-" + "a1" * 12, "*** ***"),
        ("AIza" + "a1_-5" * 7 + " xoxb-1234567890-abc", "*** ***"),
        ("GOCSPX-" + "a1_-" * 7 + " sk-proj-" + "a1" * 20, "*** ***"),
        ("npm_{0} dckr_pat_{0} pypi-{0} api_org_{0}".format("a1" * 18), "*** *** *** ***"),
        ("gs://bucket/hf_models and s3://a:b", "gs://bucket/hf_models and s3://a:b"),
        ("2026-11-24 10:00:00,000 INFO step 3/9 loss 0.5", "2026-11-24 10:00:00,000 INFO step 3/9 loss 0.5"),
    ],
)
def test_what_looks_like_a_secret_is_masked_and_nothing_else(text, masked):
    assert mask(text) == masked


def test_what_a_variable_holds_that_is_named_like_a_secret(monkeypatch):
    monkeypatch.setenv("TRACKING_API_KEY", "looks like words")
    monkeypatch.setenv("HF_TOKEN", "looks like words, and longer")
    monkeypatch.setenv("SOME_SECRET", "short")
    assert mask("looks like words, and longer; looks like words; short") == "***; ***; short"
    monkeypatch.setenv("TRACKING_API_KEY", "another value")
    assert mask("another value") == "***"


def test_the_path_of_a_file_with_credentials_is_no_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    assert mask(f"{tmp_path}: not readable") == f"{tmp_path}: not readable"


def test_a_masked_stream_is_a_stream():
    under = io.StringIO()
    stream = MaskedStream(under)
    print(HUB_TOKEN, "said", file=stream, flush=True)
    assert under.getvalue() == "*** said\n"
    assert stream.isatty() is False


@pytest.mark.parametrize("is_on", [True, False])
def test_a_traceback_and_a_log_line_hold_no_planted_secret(is_on):
    """Switched off, the secret is there: it is the masking that keeps it out."""
    switch = "" if is_on else "masking.mask = lambda text: text; "
    code = (
        f"from posttrain.config import masking; from posttrain.step import run; {switch}run.configure_logging(); "
        "import logging, os; logging.getLogger('x').warning('token %s', os.environ['HF_TOKEN']); "
        "print(os.environ['HF_TOKEN']); raise ValueError('refused: ' + os.environ['HF_TOKEN'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"HF_TOKEN": "planted-secret", "PATH": ""}
    )
    assert result.returncode == 1
    assert ("planted-secret" in result.stdout + result.stderr) is not is_on
    assert result.stderr.count(masking.MASK) == (2 if is_on else 0)


def test_texts_of_a_json_value_are_masked_and_keys_stay():
    value = {"HF_TOKEN": [HUB_TOKEN, {"a": f"is {HUB_TOKEN}"}], "loss": 0.5, "none": None}
    assert masking.masked(value) == {"HF_TOKEN": ["***", {"a": "is ***"}], "loss": 0.5, "none": None}
