import json
import shutil
from pathlib import Path

import pytest

from posttrain import model as fetching
from posttrain import preflight
from posttrain.model import fetch
from posttrain.rows.chat import ChatTokenizer
from posttrain.step import digests, records
from posttrain.weights.folder import check_model_folder, source_digest
from tests.hub_server import COMMIT, names


@pytest.fixture
def source(tiny_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "source")
    return tmp_path / "source"


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def fetch_from(address: Path | str, tmp_path: Path, **values) -> dict:
    return fetch(str(address), tmp_path / "model", tmp_path / "tokenizer", **values)


def test_a_folder_is_copied_without_what_is_no_model(source, tmp_path):
    expected = names(source)
    for name in ("pytorch_model.bin", "README.md", "modeling_x.py", "adapter_config.json", "training_args.bin"):
        (source / name).write_text("{}")
    given = fetch_from(source, tmp_path)
    assert names(tmp_path / "model") == expected
    assert names(tmp_path / "tokenizer") == expected - {"model.safetensors"}
    assert given == {"source": str(source), "commit": "", "digest": digests.digest(tmp_path / "model")}
    assert source_digest(source) == given["digest"]


@pytest.mark.parametrize(("name", "target"), [("NOTICE", "secrets/token"), ("additional_chat_templates", "secrets")])
def test_a_link_out_of_the_folder_brings_nothing_with_it(name, target, source, tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_text("s3cret")
    (source / name).symlink_to(tmp_path / target)
    for read in (lambda: fetch_from(source, tmp_path), lambda: check_model_folder(source)):
        with pytest.raises(ValueError, match=rf"{name}: is a link that leads out of .*source; give a folder"):
            read()
    assert not (tmp_path / "model").exists()


def snapshot_of(source: Path, repo: Path) -> Path:
    """A model as the Hub's cache has it: its files are links to blobs."""
    snapshot = repo / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for file in (file for file in source.rglob("*") if file.is_file()):
        file.rename(repo / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    return snapshot


def test_a_snapshot_of_the_hubs_cache_is_a_model(source, tmp_path):
    expected = names(source)
    snapshot = snapshot_of(source, tmp_path / "models--org--tiny")
    fetch_from(snapshot, tmp_path)
    assert names(tmp_path / "model") == expected


def test_blobs_that_lead_elsewhere_are_none(source, tmp_path):
    repo = tmp_path / "models--org--tiny"
    snapshot = snapshot_of(source, repo)
    (repo / "blobs").rename(tmp_path / "elsewhere")
    (repo / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link that leads out"):
        fetch_from(snapshot, tmp_path)


def test_the_tokenizer_folder_is_enough_for_tokens(source, tmp_path):
    from posttrain.rows.chat import load_tokenizer, render

    fetch_from(source, tmp_path)
    assert render(load_tokenizer(tmp_path / "tokenizer"), [{"role": "user", "content": "hello"}])


def test_shards_are_fetched_by_the_index(source, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source)
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="100KB")
    expected = names(source)
    (source / "consolidated.safetensors").write_bytes(b"another copy")
    given = fetch_from(source, tmp_path)
    assert names(tmp_path / "model") == expected
    assert source_digest(source) == given["digest"]
    shutil.rmtree(tmp_path / "model")
    (source / "model-00002-of-00002.safetensors").unlink(missing_ok=True)
    last = sorted(name for name in expected if name.endswith(".safetensors"))[-1]
    (source / last).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"model.safetensors.index.json names model-.*, which is missing"):
        fetch_from(source, tmp_path)


def test_hub_model_is_fetched_at_its_commit(source, tmp_path, hub):
    hub.repos["org/tiny"] = source
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    given = fetch_from("org/tiny@v1", tmp_path, allowed_prefixes=["hf://org/"])
    assert (given["source"], given["commit"]) == ("hf://org/tiny", COMMIT)
    assert names(tmp_path / "model") == names(source) - {"pytorch_model.bin"}
    assert given["digest"] == digests.digest(tmp_path / "model")
    files = [path for path, _ in hub.requests if "/resolve/" in path]
    assert files
    assert all(f"/resolve/{COMMIT}/" in path for path in files)
    assert not any("pytorch_model.bin" in path for path in files)


def test_the_licence_comes_from_the_card_and_one_that_forbids_is_said(source, tmp_path, hub, caplog):
    hub.repos, hub.licences = {"org/tiny": source}, {"org/tiny": "cc-by-nc-4.0"}
    assert fetch_from("org/tiny", tmp_path)["licence"] == "cc-by-nc-4.0"
    assert "hf://org/tiny is under cc-by-nc-4.0, which forbids commercial use" in caplog.text
    (source / "README.md").write_text("---\nlicense: [Apache-2.0]\n---\n# Tiny\n")
    caplog.clear()
    assert fetch_from(source, tmp_path / "local")["licence"] == "apache-2.0"
    assert "licence" not in caplog.text


def test_the_token_comes_from_the_environment_alone(source, tmp_path, hub, monkeypatch):
    hub.repos["org/tiny"] = source
    fetch_from("org/tiny", tmp_path)
    assert {token for _, token in hub.requests} == {None}
    hub.requests.clear()
    shutil.rmtree(tmp_path / "model")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch_from("hf://org/tiny", tmp_path)
    assert {token for _, token in hub.requests} == {"Bearer hf_secret"}


def test_a_second_fetch_downloads_nothing_again(source, tmp_path, hub):
    hub.repos["org/tiny"] = source
    fetch_from("org/tiny", tmp_path)
    assert "org/tiny" in str(hub.requests)
    hub.requests.clear()
    shutil.rmtree(tmp_path / "model")
    fetch_from("org/tiny", tmp_path)
    assert names(tmp_path / "model") == names(source)
    assert not [path for path, _ in hub.requests if "/resolve/" in path]


def test_a_cache_that_is_not_ours_to_write_is_named(source, tmp_path, hub, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/cache/huggingface/hub")

    hub.repos["org/tiny"] = source
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(
        ValueError, match=r"HF_HOME: /cache/huggingface/hub cannot be written; let user \d+ write there"
    ):
        fetch_from("org/tiny", tmp_path)


def test_a_gated_model_needs_its_terms_accepted(source, tmp_path, hub, monkeypatch):
    hub.repos["org/tiny"] = source
    hub.gated.add("org/tiny")
    with pytest.raises(ValueError, match="'org/tiny' is gated on the Hub; accept its terms there"):
        fetch_from("org/tiny", tmp_path)
    hub.accounts["hf_mine"] = {"name": "me"}
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert fetch_from("org/tiny", tmp_path)["commit"] == COMMIT
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    with pytest.raises(ValueError, match="the Hub does not know the token") as caught:
        fetch_from("org/tiny", tmp_path)
    assert "hf_revoked" not in str(caught.value)


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
    assert fetching.size_on_hub(f"org/tiny{suffix}") == (source / "model.safetensors").stat().st_size
    assert names(tmp_path / "model") == names(source)
    check_model_folder(tmp_path / "model")


def test_a_4_bit_name_that_is_not_quantised_is_taken_as_it_is(source, tmp_path, hub):
    hub.repos["org/tiny-bnb-4bit"] = source
    assert fetch_from("org/tiny-bnb-4bit", tmp_path)["source"] == "hf://org/tiny-bnb-4bit"


def test_quantised_models_without_a_source_are_refused(source, quantised, tmp_path, hub):
    hub.repos |= {"org/tiny-awq": quantised, "org/tiny-bnb-4bit": quantised, "org/tiny": source}
    with pytest.raises(ValueError, match="'org/tiny-awq' is quantised, .* give the 16-bit repository"):
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
    with pytest.raises(ConnectionError, match="'org/tiny' is not a folder, and the Hub does not answer"):
        fetch_from("org/tiny", tmp_path)


@pytest.mark.parametrize("address", ["/no/such/folder", "./absent", "absent"])
def test_what_is_not_there_is_refused(address, tmp_path):
    with pytest.raises(ValueError, match="does not exist or is empty; give org/name"):
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
        (lambda folder: (folder / "config.json").unlink(), "config.json: is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json: no model_type"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors and no model.safetensors.index"),
        (lambda folder: edit(folder / "config.json", auto_map={"AutoModel": "x.Y"}), "auto_map asks for the model's"),
        (lambda folder: edit(folder / "config.json", text_config={"auto_map": {}}), "config.json: auto_map asks for"),
        (
            lambda folder: edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}),
            "tokenizer_config.json: auto_map asks for",
        ),
        (
            lambda folder: edit(folder / "config.json", attn_implementation="org/kernel"),
            "'org/kernel' may name a kernel",
        ),
        (
            lambda folder: edit(folder / "config.json", _attn_implementation={"text_config": "org/kernel@v1:f"}),
            "_attn_implementation = 'org/kernel@v1:f' may name a kernel",
        ),
        (
            lambda folder: edit(folder / "config.json", parts=[{"experts_implementation": "a/b"}]),
            "experts_implementati",
        ),
        (lambda folder: edit(folder / "generation_config.json", custom_generate="org/x"), "custom_generate asks for"),
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
    (entry,) = records.read_records(str(tmp_path / "root"), "r")
    assert entry.measured["source"] == str(source)
    assert entry.outputs["model"] == entry.measured["digest"]


def test_the_tokens_of_the_first_training_rows_stand_for_all(tiny_model, monkeypatch):
    monkeypatch.setattr(preflight, "NUM_MEASURED_ROWS", 2)
    lengths = preflight.Lengths(ChatTokenizer(tiny_model))
    row = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}
    longer = row | {"completion": [{"role": "assistant", "content": "b b b b"}]}
    for side, one in (("eval", longer), ("train", row), ("train", longer), ("train", longer)):
        lengths.add(side, one)
    assert lengths.num_rows == 3 and len(lengths.tokens) == 2
    assert lengths.tokens[0] < lengths.mean < lengths.tokens[1]
    assert preflight.Lengths(None).mean is None
