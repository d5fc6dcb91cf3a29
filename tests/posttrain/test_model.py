import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from posttrain import model as fetching
from posttrain import record
from posttrain.model import check_model_folder, fetch

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def source(tiny_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "source")
    return tmp_path / "source"


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def fetch_from(address: Path | str, tmp_path: Path, **values) -> dict:
    return fetch(str(address), tmp_path / "model", tmp_path / "tokenizer", **values)


class Hub(BaseHTTPRequestHandler):
    """The answers of the Hub that a download needs: a repository's description, the list of its files, its files."""

    repos: dict[str, Path] = {}
    requests: list[tuple[str, str | None]] = []

    def do_GET(self):
        self.requests.append((self.path, self.headers.get("Authorization")))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/([^?]+))?(\?.*)?", self.path):
            self.describe(found[1], found[3])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+).*", self.path):
            self.list_files(self.repos[found[1]])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            self.send_file(self.repos[found[1]] / found[3])
        else:
            self.refuse("Not found")

    do_HEAD = do_GET

    def describe(self, repo: str, revision: str | None) -> None:
        if repo not in self.repos:
            self.refuse("RepoNotFound")
        elif revision not in (None, "main", "v1", COMMIT):
            self.refuse("RevisionNotFound")
        else:
            files = sorted(names(self.repos[repo]))
            body = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            self.reply(json.dumps(body).encode(), {})

    def list_files(self, folder: Path) -> None:
        files = [
            {"type": "file", "path": name, "oid": "0" * 40, "size": (folder / name).stat().st_size}
            for name in names(folder)
        ]
        self.reply(json.dumps(files).encode(), {})

    def send_file(self, path: Path) -> None:
        body = path.read_bytes()
        self.reply(body, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'})

    def reply(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.repos, Hub.requests = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_folder_is_copied_without_what_is_no_model(source, tmp_path):
    expected = names(source)
    for name in ("pytorch_model.bin", "README.md", "modeling_x.py", "adapter_config.json", "training_args.bin"):
        (source / name).write_text("{}")
    given = fetch_from(source, tmp_path)
    assert names(tmp_path / "model") == expected
    assert names(tmp_path / "tokenizer") == expected - {"model.safetensors"}
    assert given == {"source": str(source), "commit": "", "digest": record.digest(tmp_path / "model")}


def test_the_tokenizer_folder_is_enough_for_tokens(source, tmp_path):
    from posttrain.data import load_tokenizer, render

    fetch_from(source, tmp_path)
    assert render(load_tokenizer(tmp_path / "tokenizer"), [{"role": "user", "content": "hello"}])


def test_shards_are_fetched_by_the_index(source, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source)
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="100KB")
    expected = names(source)
    (source / "consolidated.safetensors").write_bytes(b"another copy")
    fetch_from(source, tmp_path)
    assert names(tmp_path / "model") == expected
    shutil.rmtree(tmp_path / "model")
    (source / "model-00002-of-00002.safetensors").unlink(missing_ok=True)
    last = sorted(name for name in expected if name.endswith(".safetensors"))[-1]
    (source / last).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"model.safetensors.index.json names model-.*, which is not there"):
        fetch_from(source, tmp_path)


def test_hub_model_is_fetched_at_its_commit(source, tmp_path, hub):
    hub.repos["org/tiny"] = source
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    given = fetch_from("org/tiny@v1", tmp_path, allowed_prefixes=["hf://org/"])
    assert (given["source"], given["commit"]) == ("hf://org/tiny", COMMIT)
    assert names(tmp_path / "model") == names(source) - {"pytorch_model.bin"}
    assert given["digest"] == record.digest(tmp_path / "model")
    files = [path for path, _ in hub.requests if "/resolve/" in path]
    assert files
    assert all(f"/resolve/{COMMIT}/" in path for path in files)
    assert not any("pytorch_model.bin" in path for path in files)


def test_the_token_comes_from_the_environment_alone(source, tmp_path, hub, monkeypatch):
    hub.repos["org/tiny"] = source
    fetch_from("org/tiny", tmp_path)
    assert {token for _, token in hub.requests} == {None}
    hub.requests.clear()
    shutil.rmtree(tmp_path / "model")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch_from("hf://org/tiny", tmp_path)
    assert {token for _, token in hub.requests} == {"Bearer hf_secret"}


@pytest.fixture
def quantised(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source, tmp_path / "quantised")
    edit(tmp_path / "quantised/config.json", quantization_config={"quant_method": "bitsandbytes"})
    return tmp_path / "quantised"


@pytest.mark.parametrize("suffix", ["-bnb-4bit", "-unsloth-bnb-4bit"])
def test_a_4_bit_copy_leads_to_its_source(suffix, source, quantised, tmp_path, hub):
    hub.repos |= {"org/tiny": source, f"org/tiny{suffix}": quantised}
    given = fetch_from(f"org/tiny{suffix}", tmp_path)
    assert given["source"] == "hf://org/tiny"
    assert names(tmp_path / "model") == names(source)
    check_model_folder(tmp_path / "model")


def test_a_4_bit_name_that_is_not_quantised_is_taken_as_it_is(source, tmp_path, hub):
    hub.repos["org/tiny-bnb-4bit"] = source
    assert fetch_from("org/tiny-bnb-4bit", tmp_path)["source"] == "hf://org/tiny-bnb-4bit"


def test_quantised_models_without_a_source_are_refused(source, quantised, tmp_path, hub):
    hub.repos |= {"org/tiny-awq": quantised, "org/tiny-bnb-4bit": quantised, "org/tiny": source}
    with pytest.raises(ValueError, match="'org/tiny-awq' is quantised .* give the 16-bit repository itself"):
        fetch_from("org/tiny-awq", tmp_path)
    with pytest.raises(ValueError, match="'org/tiny-bnb-4bit@v1' is quantised"):
        fetch_from("org/tiny-bnb-4bit@v1", tmp_path)
    with pytest.raises(ValueError, match=r"quantization_config \(bitsandbytes\); give the 16-bit model"):
        fetch_from(quantised, tmp_path)
    edit(source / "config.json", hidden_size=65)
    with pytest.raises(ValueError, match=r"org/tiny is not its 16-bit source \(hidden_size differs\)"):
        fetch_from("org/tiny-bnb-4bit", tmp_path)
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "model.partial").exists()


@pytest.mark.parametrize("address", ["org/absent", "org/tiny@absent"])
def test_what_is_not_on_the_hub_is_refused(address, source, tmp_path, hub):
    hub.repos["org/tiny"] = source
    with pytest.raises(ValueError, match=f"{address}' is neither a folder nor readable on the Hub.*HF_TOKEN"):
        fetch_from(address, tmp_path)


def test_an_unreachable_hub_is_no_bad_input(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="'org/tiny' is no folder, and the Hub does not answer"):
        fetch_from("org/tiny", tmp_path)


@pytest.mark.parametrize("address", ["/no/such/folder", "./absent", "absent"])
def test_what_is_not_there_is_refused(address, tmp_path):
    with pytest.raises(ValueError, match="is not there or empty; give org/name"):
        fetch_from(address, tmp_path)


def test_addresses_outside_the_prefixes_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match="base_model=.*lies under none of the allowed prefixes"):
        fetch_from(source, tmp_path, allowed_prefixes=["gs://models/"])
    with pytest.raises(ValueError, match="allowed prefixes"):
        fetch_from("org/tiny", tmp_path, allowed_prefixes=["hf://unsloth/"])


def drop_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "chat_template"}))


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncate(folder: Path) -> None:
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(10_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_template, "no chat template .* add its template"),
        (only_pickles, "has pickled weights only, .* save_pretrained"),
        (truncate, "model.safetensors: tensors end at byte .* truncated"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: not there"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json: no model_type"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors and no model.safetensors.index"),
        (lambda folder: edit(folder / "config.json", auto_map={"AutoModel": "x.Y"}), "auto_map asks for code"),
    ],
)
def test_models_that_cannot_be_used_are_refused(change, message, source, tmp_path):
    change(source)
    with pytest.raises(ValueError, match=message) as caught:
        fetch_from(source, tmp_path)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == {f"source/{name}" for name in names(source)}


def test_an_adapter_is_refused_by_name(tiny_adapter, tmp_path):
    with pytest.raises(ValueError, match="is an adapter, not a model"):
        fetch_from(tiny_adapter, tmp_path)


def test_template_in_the_tokenizer_configuration_counts(source):
    template = (source / "chat_template.jinja").read_text()
    drop_template(source)
    edit(source / "tokenizer_config.json", chat_template=template)
    check_model_folder(source)


def test_command_records_source_and_digest(source, tmp_path, monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", "r")
    fetching.main([
        "--step", "fetch_model", "--storage-root", str(tmp_path / "root"), "--base-model", str(source),
        "--model", str(tmp_path / "out/model"), "--tokenizer", str(tmp_path / "out/tokenizer"),
    ])  # fmt: skip
    (entry,) = record.read_records(str(tmp_path / "root"), "r")
    assert entry.measured["source"] == str(source)
    assert entry.outputs["model"] == entry.measured["digest"]
