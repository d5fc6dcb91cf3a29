import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from posttrain import publish, record
from posttrain.config import PublishStep
from posttrain.verdict import Verdict, at_most, holds

RUN = "run-1"
ADAPTER = "a" * 64


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "storage")


def keep(root: str, step: str, outputs: dict[str, str], verdict: Verdict | None = None, run_id: str = RUN) -> Path:
    """Writes the record of a step that gave `outputs`; gives the record's file."""
    entry = record.StepRecord(
        step=step, attempt=1, run_id=run_id, status="succeeded", started_at="2025-01-01T00:00:00+00:00", seconds=1.0,
        fingerprint="f", config={}, inputs={}, outputs=outputs, measured={},
        verdict=verdict and verdict.model_dump(mode="json"),
    )  # fmt: skip
    record.write_record(root, entry)
    return max(Path(root, "runs", run_id).glob(f"{step}.*.json"))


def judge(root: str, step: str, subject: dict[str, str], *, loss: float | None = 1.0, **words) -> Path:
    checks = [at_most("loss", loss, 2.0, detail="a | b", remedy="Train longer.", **words), holds("finite", True)]
    return keep(root, step, {"verdict": "0" * 64}, Verdict(gate=step, subject=subject, checks=checks))


@pytest.fixture
def judged(root: str, model: Path) -> str:
    keep(root, "train_sft", {"adapter": ADAPTER})
    keep(root, "merge_sft", {"model": record.digest(model)})
    judge(root, "check_sft", {"adapter": ADAPTER})
    judge(root, "check_alignment", {"model": record.digest(model), "red_team_prompts": "d" * 64})
    return root


def settings(tmp_path: Path, **values) -> PublishStep:
    given = {"required_gates": ["check_sft", "check_alignment"], "judged_gates": ["check_alignment"]}
    return PublishStep(publish_root=str(tmp_path / "published"), **given | values)


def run(model: Path, root: str, tmp_path: Path, *, version: str | None = None, **values) -> dict:
    chosen = settings(tmp_path, **values)
    return publish.publish(model, model_name="m", storage_root=root, run_id=RUN, settings=chosen, version=version)


def test_published_folder_is_the_model_with_card_sums_and_manifest(model, judged, tmp_path):
    receipt = run(model, judged, tmp_path)
    folder = Path(receipt["uri"])
    sha256 = record.digest(model)
    assert folder == tmp_path / "published" / "m" / sha256[:12]
    assert receipt["sha256"] == sha256
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"] == {
        name: record.digest(folder / name) for name in ("README.md", "config.json", "model.safetensors")
    }
    assert manifest["gates"]["check_sft"]["passed"] is True
    assert manifest["provenance"]["check_alignment"] == {"verdict": "0" * 64}
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums == manifest["files"]


def test_card_shows_values_limits_and_digests(model, judged, tmp_path):
    card = (Path(run(model, judged, tmp_path)["uri"]) / "README.md").read_text()
    assert "| loss | 1 | <= 2 |  | a \\| b |" in card
    assert record.digest(model) in card
    assert "## check_alignment: passed" in card


def test_same_model_again_is_fine(model, judged, tmp_path):
    first = run(model, judged, tmp_path)
    assert run(model, judged, tmp_path) == first


def test_another_model_under_the_same_version_is_refused(model, judged, tmp_path):
    run(model, judged, tmp_path, version="v1")
    (model / "model.safetensors").write_bytes(b"other")
    keep(judged, "merge_sft", {"model": record.digest(model)})
    judge(judged, "check_alignment", {"model": record.digest(model)})
    with pytest.raises(ValueError, match="holds another model"):
        run(model, judged, tmp_path, version="v1")
    assert (tmp_path / "published/m/v1/model.safetensors").read_bytes() == b"weights"


def test_unfinished_upload_of_another_model_is_refused(model, judged, tmp_path):
    stranger = tmp_path / "published/m/v1/model-00001-of-00002.safetensors"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"x")
    with pytest.raises(ValueError, match="model-00001-of-00002.safetensors of an unfinished upload"):
        run(model, judged, tmp_path, version="v1")


def test_missing_gate_is_refused(model, judged, tmp_path):
    with pytest.raises(ValueError, match="gate check_dpo_merge: no verdict in this run"):
        run(model, judged, tmp_path, required_gates=["check_alignment", "check_dpo_merge"])
    assert not (tmp_path / "published").exists()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"loss": 3.0}, r"did not pass: loss: 3, not <= 2 \(a \| b\)\. Train longer\."),
        ({"loss": None}, r"did not pass: loss: no number, not <= 2"),
        ({"loss": float("nan")}, r"did not pass: loss: .* \(measured nan; a \| b\)"),
        ({"loss": 1.9, "interval": (1.5, 2.5), "more_rows": 40}, "is undecided: loss: 1.9 <= 2 but from 1.5 to 2.5"),
    ],
)
def test_a_gate_that_did_not_pass_is_refused_with_its_check(found, words, model, judged, tmp_path):
    judge(judged, "check_sft", {"adapter": ADAPTER}, **found)
    with pytest.raises(ValueError, match=f"^gate check_sft: {words}"):
        run(model, judged, tmp_path)
    assert not (tmp_path / "published").exists()


@pytest.mark.parametrize(
    "claim",
    [
        {"passed": True},
        {"passed": True, "outcome": "passed"},
        {"passed": True, "outcome": "passed", "checks": []},
        {"passed": True, "checks": [{"name": "loss", "status": "PASS"}]},
    ],
)
def test_what_a_verdict_claims_does_not_count(claim, model, judged, tmp_path):
    file = judge(judged, "check_sft", {"adapter": ADAPTER}, loss=3.0)
    entry = json.loads(file.read_text())
    entry["verdict"] |= claim
    file.write_text(json.dumps(entry))
    with pytest.raises(ValueError, match="gate check_sft: did not pass|checks"):
        run(model, judged, tmp_path)
    assert not (tmp_path / "published").exists()


def test_the_verdict_of_another_gate_is_refused(model, judged, tmp_path):
    other = Verdict(gate="check_data", subject={"adapter": ADAPTER}, checks=[holds("rows", True)])
    keep(judged, "check_sft", {}, other)
    with pytest.raises(ValueError, match="gate check_sft: its record holds the verdict of check_data"):
        run(model, judged, tmp_path)


def test_a_verdict_on_what_this_run_did_not_make_is_refused(model, judged, tmp_path):
    judge(judged, "check_sft", {"adapter": "c" * 64})
    keep(judged, "train_sft", {"adapter": "c" * 64}, run_id="another")
    with pytest.raises(ValueError, match="gate check_sft: judged adapter c{64}, which no step of this run made"):
        run(model, judged, tmp_path)


def test_a_verdict_on_nothing_is_refused(model, judged, tmp_path):
    judge(judged, "check_sft", {})
    with pytest.raises(ValueError, match="gate check_sft: its verdict does not say what it judged"):
        run(model, judged, tmp_path)


def test_a_gate_that_judged_another_model_of_the_run_is_refused(model, judged, tmp_path):
    judge(judged, "check_alignment", {"model": ADAPTER})
    with pytest.raises(ValueError, match="gate check_alignment: judged model a{64}, not"):
        run(model, judged, tmp_path)


def test_model_changed_after_the_verdict_is_refused(model, judged, tmp_path):
    (model / "model.safetensors").write_bytes(b"tampered")
    with pytest.raises(ValueError, match="gate check_alignment: judged model"):
        run(model, judged, tmp_path)


@pytest.mark.parametrize("gates", [{"required_gates": [], "judged_gates": []}, {"judged_gates": ["check_other"]}])
def test_publishing_without_a_gate_on_the_model_is_refused(gates, model, judged, tmp_path):
    with pytest.raises(ValueError, match="judged_gates"):
        run(model, judged, tmp_path, **gates)


def test_names_cannot_leave_the_publish_root(model, judged, tmp_path):
    with pytest.raises(ValueError, match="version: '../x' is not a name"):
        run(model, judged, tmp_path, version="../x")


def test_hub_upload_without_token_is_refused_before_anything_is_published(model, judged, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ValueError, match="HF_TOKEN"):
        run(model, judged, tmp_path, upload_to_hub=True, hub_repo_id="o/m")
    assert not (tmp_path / "published").exists()


class Hub(BaseHTTPRequestHandler):
    """The three answers of the Hub that an upload of small files needs."""

    requests: list[tuple[str, list[dict]]] = []

    def do_POST(self):
        lines = self.rfile.read(int(self.headers["Content-Length"])).splitlines()
        body = [json.loads(line) for line in lines]
        self.requests.append((self.path, body))
        if self.path == "/api/repos/create":
            answer = {"url": f"http://{self.headers['Host']}/org/m", "name": "org/m"}
        elif self.path.startswith("/api/models/org/m/preupload/"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in body[0]["files"]
            ]
            answer = {"files": files}
        else:
            answer = {"commitUrl": f"http://{self.headers['Host']}/org/m/commit/c0ffee", "commitOid": "c0ffee"}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_hub_gets_one_commit_in_a_private_repository(model, judged, tmp_path, hub):
    receipt = run(model, judged, tmp_path, upload_to_hub=True, hub_repo_id="org/m")
    assert receipt["hub"] == {"repo_id": "org/m", "commit": "c0ffee"}
    created = next(body[0] for path, body in hub.requests if path == "/api/repos/create")
    assert created["visibility"] == "private"
    (commit,) = [body for path, body in hub.requests if "/commit/" in path]
    files = {line["value"]["path"] for line in commit if line["key"] == "file"}
    assert files == {"config.json", "model.safetensors", "README.md", "SHA256SUMS", "manifest.json"}


def test_command_writes_receipt_and_record(model, judged, tmp_path, monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", RUN)
    receipt = tmp_path / "out/receipt.json"
    publish.main([
        "--step", "publish_model", "--storage-root", judged, "--config", settings(tmp_path).model_dump_json(),
        "--model", str(model), "--model-name", "m", "--receipt", str(receipt),
    ])  # fmt: skip
    assert json.loads(receipt.read_text())["sha256"] == record.digest(model)
    assert record.read_records(judged, RUN)[-1].status == "succeeded"
