"""Messages to a webhook: a server that listens, ones that do not, and no word of the URL anywhere."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from posttrain import reject, report
from posttrain.config import RUN_ID_ENV, ReportStep
from posttrain.config.masking import mask
from posttrain.config.notify import WEBHOOK_ENV
from posttrain.step import records, webhook
from posttrain.verdict import Verdict, below

PATH = "/services/T0001/B0002/abcdefghijklmnop"
STOPPED = Verdict(
    gate="check_sft",
    subject={"model": "0" * 64},
    checks=(below("held_out_loss", 2.5, 2.0, detail="<!channel> & hf_abcdefghijklmnopqrstuvwxyz", remedy="Train on."),),
)


class Listener(BaseHTTPRequestHandler):
    """Keeps what it is sent, and answers with the status that a test asks for."""

    requests: list[tuple[str, str, dict]] = []
    status = 200

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append((self.path, self.headers["Content-Type"], body))
        self.send_response(self.status)
        if self.status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def listener(monkeypatch) -> Iterator[type[Listener]]:
    Listener.requests, Listener.status = [], 200
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv(WEBHOOK_ENV, f"http://127.0.0.1:{server.server_port}{PATH}")
    yield Listener
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_message_is_text_and_a_block_without_secrets_mentions_or_lines_of_its_own(listener):
    assert webhook.send("demo: stopped", ["a <!channel> & b\nc", "hf_abcdefghijklmnopqrstuvwxyz"]) == "sent"
    ((path, kind, body),) = listener.requests
    assert (path, kind) == (PATH, "application/json; charset=utf-8")
    assert body["text"] == "*demo: stopped*\n• a &lt;!channel&gt; &amp; b c\n• ***"
    assert body["blocks"] == [{"type": "section", "text": {"type": "mrkdwn", "text": body["text"]}}]
    webhook.send("long", ["x" * 10_000])
    assert len(listener.requests[-1][2]["text"]) <= webhook.MAX_CHARS


@pytest.mark.parametrize(("status", "words"), [(500, "it answered 500"), (404, "answered 404"), (302, "answered 302")])
def test_a_server_that_refuses_fails_nothing_and_is_said(status, words, listener, caplog):
    listener.status = status
    outcome = webhook.send("title", [])
    assert words in outcome and outcome in caplog.text
    assert len(listener.requests) == 1 and PATH not in caplog.text


def test_a_server_that_is_away_or_silent_fails_nothing_and_is_said(monkeypatch, caplog):
    monkeypatch.setattr(webhook, "TIMEOUT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv(WEBHOOK_ENV, f"http://127.0.0.1:{port}{PATH}")
        assert "no answer within 0.05 seconds" in webhook.send("title", [])
    assert "cannot be reached (Connection refused)" in webhook.send("title", [])
    assert PATH not in caplog.text


@pytest.mark.parametrize(
    "url", ["", "file:///etc/passwd", f"hooks.example.org{PATH}", f"http://[::1{PATH}", "http:///", f"http://a:0{PATH}"]
)
def test_what_is_no_url_is_refused_at_the_start_and_costs_nothing_later(url, monkeypatch):
    monkeypatch.setenv(WEBHOOK_ENV, url)
    with pytest.raises(ValueError, match=WEBHOOK_ENV) as raised:
        webhook.check()
    assert "is missing or no URL" in webhook.send("title", [])
    assert PATH not in str(raised.value)


def test_the_url_is_masked_wherever_it_is_written(monkeypatch):
    monkeypatch.setenv(WEBHOOK_ENV, f"https://example.org{PATH}")
    assert mask(f"POST https://example.org{PATH}") == "POST ***"
    monkeypatch.delenv(WEBHOOK_ENV)
    assert PATH not in mask(f"POST https://hooks.slack.com{PATH}")


def test_the_step_that_rejects_tells_why_and_rejects_all_the_same(listener, tmp_path, monkeypatch):
    monkeypatch.setenv(RUN_ID_ENV, "run-1")
    (tmp_path / "verdict.json").write_text(STOPPED.model_dump_json())
    flags = [
        "--step",
        "reject_sft",
        "--storage-root",
        str(tmp_path / "root"),
        "--verdict",
        str(tmp_path / "verdict.json"),
    ]
    for config in ({"notify": True, "pipeline_id": "demo-v1"}, {}):
        with pytest.raises(SystemExit, match="rejected by check_sft"):
            reject.main([*flags, "--config", json.dumps(config)])
    ((_, _, body),) = listener.requests
    title, check, run_id = body["text"].splitlines()
    assert (title, run_id) == ("*demo-v1: check_sft stops the run*", "• run run-1")
    assert check.startswith("• failed: held_out_loss: 2.5, not &lt; 2 (&lt;!channel&gt; &amp; ***). Train on.")


def test_the_report_tells_how_the_run_ended_and_records_that_it_did(listener, tmp_path, monkeypatch):
    monkeypatch.setenv(RUN_ID_ENV, "run-1")
    root = str(tmp_path / "root")
    record = records.StepRecord(
        step="check_sft", attempt=1, run_id="run-1", status="succeeded", started_at="2026-01-01T00:00:00+00:00",
        seconds=2.5, fingerprint="f", kept="", config={}, inputs={"model": "0" * 64}, outputs={}, measured={},
        verdict=STOPPED.model_dump(mode="json"),
    )  # fmt: skip
    records.write_record(root, record)
    flags = ["--step", "report_run", "--storage-root", root, "--result", str(tmp_path / "r.json")]
    flags += ["--report", str(tmp_path / "r.html")]
    for notify in (True, None):
        settings = ReportStep(pipeline_id="demo-v1", steps=["check_sft"], notify=notify)
        report.main([*flags, "--config", settings.model_dump_json()])
    ((_, _, body),) = listener.requests
    assert body["text"].splitlines()[0] == "*demo-v1: Stopped by check_sft*"
    told, untold = (one.measured for one in records.read_records(root, "run-1") if one.step == "report_run")
    assert told["webhook"] == "sent" and "webhook" not in untold
