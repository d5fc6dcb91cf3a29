"""A signed model: whatever is changed about it, or about what it says of itself, is caught by the public key alone."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic_core import to_json

from posttrain import verify
from posttrain.config import SigningStep
from posttrain.config.signing import SIGNING_KEY_ENV
from posttrain.signing import envelope, signature, statements
from posttrain.step import digests
from posttrain.step.code import Code, fingerprint
from posttrain.step.provenance import Provenance
from posttrain.step.published import Manifest
from tests.posttrain.line import GATES, Line
from tests.posttrain.test_publish import FILES
from tests.posttrain.test_verify import edit, link

SIGNED = FILES | {"bom.cdx.json", "attestations.jsonl", "model.sig"}
IMAGES = {"cpu": "registry.example.org/posttrain-cpu@sha256:" + "a" * 64, "train": "posttrain-train:local"}


def write_keys(folder: Path, key=None) -> Path:
    """Writes private.pem and public.pem; returns the folder."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(parents=True, exist_ok=True)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "private.pem").write_bytes(private)
    (folder / "public.pem").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    return write_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Line:
    """A run that has not published. Read only."""
    return Line(tmp_path_factory.mktemp("finished")).run()


@pytest.fixture(scope="module")
def published(line, keys, tmp_path_factory) -> Path:
    """The folder of a signed model. Read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SIGNING_KEY_ENV, str(keys / "private.pem"))
        root = tmp_path_factory.mktemp("published")
        return Path(line.publish(str(root), signing=SigningStep(images=IMAGES))["uri"])


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy of the published folder, to be changed."""
    return shutil.copytree(published, tmp_path / "m")


def faults(folder: Path, keys: Path) -> list[str]:
    return verify.verify(str(folder), public_key=str(keys / "public.pem")).faults


def rewrite(folder: Path, change: Callable[[dict], None] = lambda chain: None) -> None:
    """Changes the chain and everything unsigned that names its digest: what somebody without the key can do."""
    edit(folder, "provenance.json", change)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: digests.digest(folder / name) for name in manifest["files"]}
    whole = Manifest.model_validate(manifest)
    (folder / "manifest.json").write_bytes(whole.json_bytes)
    (folder / "SHA256SUMS").write_text(whole.sums)


def opened(folder: Path) -> list[dict]:
    key = envelope.read_public_key(folder.parent / "public.pem")
    return [envelope.opened(json.loads(line), key) for line in (folder / "attestations.jsonl").read_text().splitlines()]


def test_a_signed_model_is_verified_with_and_without_its_key(folder, keys, capsys):
    assert {path.name for path in folder.iterdir()} == SIGNED
    assert faults(folder, keys) == verify.verify(str(folder)).faults == []
    assert verify.main([str(folder), "--public-key", str(keys / "public.pem")]) == 0
    assert f"3 gates passed; signed with {keys / 'public.pem'}; " in capsys.readouterr().out
    assert verify.main([str(folder)]) == 0
    assert capsys.readouterr().out.endswith("; the signature was not checked\n")


def test_openssf_model_signing_accepts_the_signature(folder, keys):
    from model_signing import verifying

    config = verifying.Config().use_elliptic_key_verifier(public_key=keys / "public.pem")
    config.verify(folder, folder / "model.sig")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json"):
        config.verify(folder, folder / "model.sig")


def test_a_signature_of_openssf_model_signing_is_opened(folder, keys, tmp_path):
    from model_signing import signing

    signing.Config().use_elliptic_key_signer(private_key=keys / "private.pem").sign(folder, tmp_path / "other.sig")
    theirs = json.loads((tmp_path / "other.sig").read_text())
    statement = envelope.opened(theirs["dsseEnvelope"], envelope.read_public_key(keys / "public.pem"))
    assert statement["predicateType"] == "https://model_signing/signature/v1.0"
    assert theirs["verificationMaterial"] == json.loads((folder / "model.sig").read_text())["verificationMaterial"]


@pytest.mark.parametrize("name", sorted(SIGNED))
def test_a_change_of_any_file_is_caught(name, folder, keys):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert faults(folder, keys)


def test_a_digest_that_is_none_is_a_fault_and_no_crash(folder, keys):
    edit(folder, "manifest.json", lambda manifest: manifest["files"].update({"config.json": "z" * 64}))
    assert "manifest.json: names a SHA-256 that is none" in faults(folder, keys)


@pytest.mark.parametrize("name", ["attestations.jsonl", "model.sig"])
def test_a_signed_model_without_its_signature_is_refused_with_and_without_a_key(name, folder, keys):
    (folder / name).unlink()
    for wrong in (faults(folder, keys), verify.verify(str(folder)).faults):
        assert f"{name}: is missing, though the model is signed" in wrong


@pytest.mark.parametrize("name", ["config.json", "README.md", "bom.cdx.json"])
def test_a_file_whose_digests_were_all_rewritten_is_caught_by_the_key_alone(name, folder, keys):
    (folder / name).write_text("{}")
    rewrite(folder)
    assert any(fault.startswith(f"{name}: is not the file that was signed") for fault in faults(folder, keys))
    if name != "config.json":  # a model's own file is bound by the gates' verdicts as well
        assert verify.verify(str(folder)).faults == []


def forge_verdict(chain: dict) -> None:
    """Gives a gate better numbers, and makes every digest in the chain right again."""
    gate = link(chain, "check_safety")
    gate["verdict"]["checks"][0] |= {"value": 0.25, "interval": [0.2, 0.3]}
    gate["outputs"]["verdict"] = hashlib.sha256(to_json(gate["verdict"], indent=2)).hexdigest()


def test_a_forged_verdict_with_right_hashes_is_caught(folder, keys):
    rewrite(folder, forge_verdict)
    assert verify.verify(str(folder)).faults == []  # nothing but the key tells
    wrong = faults(folder, keys)
    forged = "attestations.jsonl: the signed test result of check_safety does not say what provenance.json says"
    assert any(fault.startswith(forged) for fault in wrong)
    assert any(fault.startswith("provenance.json: is not the file that was signed") for fault in wrong)


def test_forged_settings_of_a_step_are_caught(folder, keys):
    def change(chain: dict) -> None:
        step = link(chain, "train_sft")
        step["config"]["epochs"] = 99.0
        code = Code.model_validate(step["code"])
        step["fingerprint"] = fingerprint("train_sft", config=step["config"], inputs=step["inputs"], code=code)

    rewrite(folder, change)
    assert verify.verify(str(folder)).faults == []
    assert any("the signed provenance does not say" in fault for fault in faults(folder, keys))


def test_another_key_is_refused_and_so_is_a_model_that_was_signed_anew(folder, keys, tmp_path):
    others = write_keys(tmp_path / "others")
    wrong = faults(folder, others)
    assert any("names the signer" in fault for fault in wrong)
    assert any(fault.startswith("model.sig: was changed after it was signed") for fault in wrong)
    key = envelope.read_private_key(others / "private.pem")
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    manifest = manifest.model_copy(update={"signed_with": envelope.key_name(key.public_key())})
    (folder / "manifest.json").write_bytes(manifest.json_bytes)
    chain = Provenance.model_validate_json((folder / "provenance.json").read_bytes())
    for name, text in signature.sign(manifest, chain, envelope.KeySigner(key)).items():
        (folder / name).write_text(text)
    assert faults(folder, others) == []  # whoever has a key can sign with it
    assert len([fault for fault in faults(folder, keys) if "was not signed with this key" in fault]) == 5


def test_an_attestation_that_is_left_out_repeated_or_of_another_model_is_caught(folder, keys):
    lines = (folder / "attestations.jsonl").read_text().splitlines(keepends=True)
    (folder / "attestations.jsonl").write_text("".join(lines[:-1]))
    wrong = faults(folder, keys)
    assert "attestations.jsonl: has no signed test result of check_safety" in wrong
    assert "attestations.jsonl: is not the file that was signed" in wrong
    (folder / "attestations.jsonl").write_text("".join(lines + lines[-1:]))
    assert faults(folder, keys) == ["attestations.jsonl: is not the file that was signed"]
    (folder / "attestations.jsonl").write_text("no\n")
    assert "attestations.jsonl: line 1 is not JSON" in faults(folder, keys)


def test_an_unsigned_model_is_refused_with_a_key(line, published, keys, tmp_path):
    uri = line.publish(str(tmp_path / "unsigned"))["uri"]
    assert "--public-key" in (published / "README.md").read_text()
    assert "--public-key" not in Path(uri, "README.md").read_text()
    assert verify.verify(uri).faults == []
    (fault,) = faults(Path(uri), keys)
    assert fault.startswith("manifest.json: the model is not signed")
    for name in ("model.sig", "attestations.jsonl"):
        Path(uri, name).write_text("{}")
    assert {fault.partition(":")[0] for fault in verify.verify(uri).faults} == {"model.sig", "attestations.jsonl"}


def test_the_provenance_names_sources_images_and_steps(folder, keys):
    shutil.copy(keys / "public.pem", folder.parent)
    built, *tests = opened(folder)
    assert built["predicateType"] == "https://slsa.dev/provenance/v1"
    assert {one["name"] for one in built["subject"]} == {"config.json", "tokenizer.json", "model.safetensors"}
    definition = built["predicate"]["buildDefinition"]
    needed = {one["name"]: one for one in definition["resolvedDependencies"]}
    assert needed["fetch_model"]["uri"] == "hf://acme/base@c0ffee"
    assert needed["prepare_sft_data"]["digest"].keys() == {"sha256"}
    assert needed["image cpu"] == {
        "name": "image cpu", "uri": "registry.example.org/posttrain-cpu", "digest": {"sha256": "a" * 64}
    }  # fmt: skip
    assert needed["image train"] == {"name": "image train", "uri": "posttrain-train:local"}
    assert definition["externalParameters"]["model_name"] == "m"
    assert {one["predicate"]["gate"]: one["predicate"]["result"] for one in tests} == dict.fromkeys(GATES, "PASSED")
    assert tests[-1]["predicate"]["passedTests"] == ["loss", "finite"]


def test_publishing_a_signed_version_again_is_fine_and_an_unsigned_one_is_refused(line, keys, tmp_path, monkeypatch):
    monkeypatch.setenv(SIGNING_KEY_ENV, str(keys / "private.pem"))
    first = line.publish(str(tmp_path / "a"), signing=SigningStep())
    assert line.publish(str(tmp_path / "a"), signing=SigningStep())["manifest_sha256"] == first["manifest_sha256"]
    line.publish(str(tmp_path / "b"))
    with pytest.raises(ValueError, match="not signed by the signer of this run.*publish under another version"):
        line.publish(str(tmp_path / "b"), signing=SigningStep())


@pytest.mark.parametrize("make", [ed25519.Ed25519PrivateKey.generate, lambda: ec.generate_private_key(ec.SECP256K1())])
def test_a_key_of_another_kind_is_refused_before_anything_is_published(make, line, tmp_path, monkeypatch):
    keys = write_keys(tmp_path / "keys", make())
    monkeypatch.setenv(SIGNING_KEY_ENV, str(keys / "private.pem"))
    with pytest.raises(ValueError, match="give a PEM file of the curve"):
        line.publish(str(tmp_path / "out"), signing=SigningStep())
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="give a PEM file of the curve"):
        envelope.read_public_key(keys / "public.pem")


def test_a_missing_or_broken_key_is_said_without_its_content(tmp_path, monkeypatch):
    monkeypatch.delenv(SIGNING_KEY_ENV, raising=False)
    with pytest.raises(ValueError, match="POSTTRAIN_SIGNING_KEY does not name the file"):
        envelope.signing_key()
    monkeypatch.setenv(SIGNING_KEY_ENV, str(tmp_path / "gone.pem"))
    with pytest.raises(ValueError, match="gone.pem: cannot be read"):
        envelope.signing_key()
    (tmp_path / "gone.pem").write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    with pytest.raises(ValueError, match="is not a private key without a password") as raised:
        envelope.signing_key()
    assert "c2VjcmV0" not in str(raised.value)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_every_supported_curve_signs(curve):
    key = ec.generate_private_key(curve)
    assert envelope.opened(envelope.signed({"a": 1.5}, key), key.public_key()) == {"a": 1.5}


def test_the_bill_of_materials_is_valid_cyclonedx(folder):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (folder / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = json.loads(text)
    model = bom["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "m")
    parts = {part["name"]: part for part in bom["components"]}
    assert parts["hf://acme/base"]["type"] == "machine-learning-model"
    assert [part["type"] for part in parts.values() if part["name"].endswith("sft.jsonl")] == ["data"]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"type": "loss", "value": "1", "slice": "check_sft", "confidenceInterval": {
        "lowerBound": "0.9", "upperBound": "1.1"}} in metrics  # fmt: skip
    assert {one["name"] for one in model["components"]} == {"config.json", "tokenizer.json", "model.safetensors"}


def test_a_signature_that_says_something_else_of_the_same_files_is_caught(folder, keys):
    key = envelope.read_private_key(keys / "private.pem")
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    files = statements.signed_files(manifest, (folder / "attestations.jsonl").read_text())
    renamed = envelope.signed(statements.model_signature(files, model_name="other"), key)
    (folder / "model.sig").write_text(json.dumps(envelope.bundle(renamed, key.public_key())))
    said = "model.sig: is not a signature on this model: it says something else of the same files"
    assert faults(folder, keys) == [said]


def test_an_attestation_of_a_gate_that_the_chain_lacks_is_caught(folder, keys):
    key = envelope.read_private_key(keys / "private.pem")
    with open(folder / "attestations.jsonl", "a") as file:
        file.write(json.dumps(envelope.signed({"predicate": {"gate": "check_more"}}, key)) + "\n")
    said = "attestations.jsonl: has a test result of check_more, of which provenance.json has no word"
    assert said in faults(folder, keys)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: made | {"signatures": made["signatures"] * 2}, "is not one signature on application/vnd.in-toto"),
        (lambda made: made | {"signatures": []}, "is not one signature on"),
        (lambda made: made | {"payloadType": "text/plain"}, "is not one signature on"),
        (lambda made: made | {"payload": made["payload"] + "\n"}, "is not a signed statement"),
        (lambda made: made | {"signatures": [{"sig": "%" + made["signatures"][0]["sig"]}]}, "is not a signed"),
        (lambda made: made | {"payload": "e30="}, "was changed after it was signed"),
        (lambda made: None, "is not a signed statement"),
        (lambda made: {}, "is not a signed statement"),
    ],
)
def test_only_an_envelope_with_one_signature_of_the_key_is_opened(change, words):
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(ValueError, match=words):
        envelope.opened(change(envelope.signed({"a": 1}, key)), key.public_key())
