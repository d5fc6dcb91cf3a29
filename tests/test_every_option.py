"""The line with every option on: pairs of its own, best checkpoints, an export, a signature, a webhook and a registry
that listen.

Each has tests of its own; here a user turns all of them on at once, runs the same again, and is stopped by a gate.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from posttrain.step import records
from posttrain.step.records import StepRecord
from tests import model_registry
from tests.tiny_line import write_line

pytestmark = pytest.mark.long

PATH = "/services/T0001/B0002/abcdefghijklmnop"
TOKEN = "hf_plantedPlantedPlantedPlanted00"
REGISTRY_TOKEN = "planted-token-of-the-registry"
OPTIONS = (
    "notify={}",
    "signing={}",
    "export={formats: [q8_0], max_export_drop: 0.5}",
    "stages.pairs.enabled=true",
    "pairs={num_answers: 3, use_reference: true}",
    "sft.keep_best={num_rows: 8, num_checkpoints: 2}",
    "dpo.keep_best={num_rows: 8, num_checkpoints: 2}",
    "validation.max_format_drop=1",
)


class Listener(BaseHTTPRequestHandler):
    """Keeps what it is sent; answers 200, or what a test asks for, one after the other: 0 is no answer."""

    sent: list[dict] = []
    answers: list[int] = []
    is_over = threading.Event()

    def do_POST(self) -> None:
        assert self.path == PATH
        self.sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status = self.answers.pop(0) if self.answers else 200
        if not status:
            self.is_over.wait()
            return
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def webhook() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}{PATH}"
    Listener.is_over.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def registry() -> Iterator[model_registry.ModelRegistry]:
    with model_registry.serve(token=REGISTRY_TOKEN) as registry:
        yield registry


@pytest.fixture(scope="module")
def folder(tmp_path_factory, taught_model) -> Path:
    """A folder with data, a configuration and a pair of keys."""
    folder = tmp_path_factory.mktemp("options")
    write_line(folder, taught_model)
    key = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)
    return folder


@pytest.fixture(scope="module")
def run(folder, webhook, registry):
    """Runs the line with all options and these changes under an ID; gives the process, and what the webhook got."""

    def run(run_id: str, *changes: str, answers: tuple[int, ...] = ()) -> tuple[subprocess.CompletedProcess, list[str]]:
        Listener.sent.clear()
        Listener.answers[:] = answers
        options = (*OPTIONS, f"registries={{model_registry: {{url: '{registry.url}'}}, required: true}}")
        flags = [part for setting in (*options, *changes) for part in ("--set", setting)]
        command = [sys.executable, "run_pipeline.py", "--config", folder / "pipeline.yaml", "--run-id", run_id, *flags]
        environment = {"POSTTRAIN_WEBHOOK_URL": webhook, "POSTTRAIN_SIGNING_KEY": str(folder / "key.pem")}
        environment |= {"POSTTRAIN_MODEL_REGISTRY_TOKEN": REGISTRY_TOKEN, "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=280)
        return ended, [body["text"] for body in Listener.sent]

    return run


@pytest.fixture(scope="module")
def promoted(run):
    ended, told = run("promoted")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return told


def records_of(folder: Path, run_id: str) -> dict[str, StepRecord]:
    return {entry.step: entry for entry in records.read_records(str(folder / "root"), run_id)}


def test_the_webhook_hears_once_that_the_run_ended(folder, promoted):
    (told,) = promoted
    published = next((folder / "root" / "published" / "tiny").glob("*-*"))
    assert told.startswith(f"*tiny: Published and made current*\n• {published}\n• sft: ")
    assert told.endswith(told[told.index("• run promoted, ") :]) and "• pairs: " in told


def test_what_was_published_is_verified_by_its_signature(folder, promoted):
    published = next((folder / "root" / "published" / "tiny").glob("*-*"))
    command = [sys.executable, "-m", "posttrain.verify", published, "--public-key", folder / "public.pem"]
    verified = subprocess.run([*command, "--storage-root", folder / "root"], capture_output=True, text=True)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "7 gates passed; signed with" in verified.stdout
    assert (published / "export" / "model-q8_0.gguf").is_file()
    with open(published / "export" / "model-q8_0.gguf", "ab") as file:
        file.write(b"!")
    altered = subprocess.run(command, capture_output=True, text=True)
    assert altered.returncode != 0 and "model-q8_0.gguf: was changed" in altered.stdout + altered.stderr
    os.truncate(published / "export" / "model-q8_0.gguf", (published / "export" / "model-q8_0.gguf").stat().st_size - 1)


def test_each_option_did_its_part(folder, promoted):
    entries = records_of(folder, "promoted")
    assert entries["check_export"].judged.passed and entries["check_pairs"].judged.passed
    for training in ("train_sft", "train_dpo"):
        measured = entries[training].measured
        assert measured["kept_step"] in (measured["total_steps"] // 2, measured["total_steps"])
        assert "best of 2 checkpoints on 8 rows set aside" in measured["kept_because"]
    assert entries["train_dpo"].inputs["train"] == entries["sample_pairs"].outputs["train"]


def test_the_published_version_is_registered(folder, registry, promoted):
    (version,), ((_, artifact),) = registry.versions, registry.artifacts
    published = next((folder / "root" / "published" / "tiny").glob("*-*"))
    assert (version["name"], artifact["uri"]) == (published.name, published.as_uri())
    result = json.loads((folder / "root" / "runs" / "promoted" / "pipeline_result.json").read_text())
    assert result["registered"] == {"model_registry": f"{registry.url}{registry.root}/model_versions/{version['id']}"}
    properties = version["customProperties"]
    verdict = records_of(folder, "promoted")["check_alignment"].judged
    assert properties["check_alignment.answer_accuracy"]["double_value"] == verdict.numbers["answer_accuracy"]


def test_no_secret_is_told_or_left(folder, promoted):
    left = [path for path in (folder / "root").rglob("*") if path.is_file()]
    assert len(left) > 100
    key = (folder / "key.pem").read_text().splitlines()[1]
    for content in [*(text.encode() for text in promoted), *(path.read_bytes() for path in left)]:
        assert not [secret for secret in (TOKEN, REGISTRY_TOKEN, PATH, key) if secret.encode() in content]


def test_the_same_again_reuses_everything_and_tells_nothing(folder, run, registry, promoted):
    registry.requests.clear()
    ended, told = run("again")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    entries = records_of(folder, "again")
    done = {step for step, entry in entries.items() if entry.status != "reused"}
    assert done <= {
        "preflight", "fetch_model", "prepare_sft_data", "prepare_preferences", "publish_model", "register_model",
        "check_champion", "promote_model", "report_run",
    }  # fmt: skip
    assert registry.requests and registry.written == []
    assert told == []
    assert entries["report_run"].measured["webhook"] == "not sent again: run promoted sent it"


def test_a_webhook_that_is_silent_or_refuses_changes_nothing_of_a_stop(folder, run, promoted):
    ended, told = run("stopped", "validation.min_margin=1000", answers=(0, 500))
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "STOPPED BY check_alignment" in ended.stdout
    assert [text.splitlines()[0] for text in told] == [
        "*tiny: check_alignment stops the run*", "*tiny: Stopped by check_alignment*",
    ]  # fmt: skip
    entries = records_of(folder, "stopped")
    assert entries["report_run"].measured["webhook"] == "the message was not sent: it answered 500"
    log = folder / "root" / "runs" / "stopped" / "logs" / "reject_alignment.log"
    assert "the message was not sent: no answer within 5 seconds" in log.read_text()
