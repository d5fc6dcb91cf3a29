"""A model that is signed without a key: the identity of the pod, a certificate and a log entry answer for it."""

import base64
import json
import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from posttrain import verify
from posttrain.config import PipelineConfig, SigningStep
from posttrain.config.keyless import ID_TOKEN_ENV, ID_TOKEN_FILE_ENV, Keyless
from posttrain.config.signing import Signing
from posttrain.nodes.kubernetes import Kubernetes
from posttrain.signing import keyless, signature
from posttrain.signing.keyless import KeylessSigner, KeylessTrust
from runner.parameters import absolute_paths
from tests.posttrain.line import GATES, Line
from tests.posttrain.test_signing import SIGNED, forge_verdict, rewrite
from tests.sigstore_server import IDENTITY, ISSUER, SUBJECT, Sigstore, serving

STATEMENT = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [{"name": "m", "digest": {"sha256": "0" * 64}}],
    "predicateType": "https://example.org/p",
    "predicate": {"a": 1.5},
}


@pytest.fixture(scope="module")
def sigstore(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("sigstore")) as sigstore:
        yield sigstore


@pytest.fixture
def token(sigstore, monkeypatch, tmp_path) -> Path:
    """The file with the token of this pod."""
    (tmp_path / "token").write_text(sigstore.token())
    monkeypatch.delenv(ID_TOKEN_ENV, raising=False)
    monkeypatch.setenv(ID_TOKEN_FILE_ENV, str(tmp_path / "token"))
    return tmp_path / "token"


def named(sigstore: Sigstore, **changes) -> Keyless:
    return Keyless(identity=IDENTITY, issuer=ISSUER, trust_config=str(sigstore.trust_config)).model_copy(update=changes)


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Line:
    return Line(tmp_path_factory.mktemp("finished")).run()


@pytest.fixture(scope="module")
def published(line, sigstore, tmp_path_factory) -> Path:
    """The folder of a model that is signed without a key. Read only."""
    root = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ID_TOKEN_ENV, sigstore.token())
        return Path(line.publish(str(root), signing=SigningStep(keyless=named(sigstore)))["uri"])


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published, tmp_path / "m")


def test_a_model_is_signed_by_the_identity_of_its_pod_and_verified_by_its_name(folder, sigstore, capsys):
    assert {path.name for path in folder.iterdir()} == SIGNED
    assert len(sigstore.entries) >= len(GATES) + 2  # each attestation, and the signature on all
    flags = ["--identity", IDENTITY, "--identity-provider", ISSUER]
    assert verify.main([str(folder), *flags, "--trust-config", str(sigstore.trust_config)]) == 0
    assert f"3 gates passed; signed by {IDENTITY}; " in capsys.readouterr().out
    assert verify.main([str(folder), *flags, "--trust-config", str(sigstore.folder / "trusted_root.json")]) == 0
    assert json.loads((folder / "manifest.json").read_text())["signed_with"] == f"{IDENTITY} of {ISSUER}"


def test_openssf_model_signing_accepts_the_signature(folder, sigstore):
    from model_signing import verifying

    config = verifying.Config().use_sigstore_verifier(
        identity=IDENTITY, oidc_issuer=ISSUER, trust_config=sigstore.trust_config
    )
    config.verify(folder, folder / "model.sig")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json"):
        config.verify(folder, folder / "model.sig")


def test_a_forged_verdict_with_right_hashes_is_caught(folder, sigstore):
    rewrite(folder, forge_verdict)
    assert verify.verify(str(folder)).faults == []
    wrong = verify.verify(str(folder), keyless=named(sigstore)).faults
    forged = "attestations.jsonl: the signed test result of check_safety does not say what provenance.json says"
    assert any(fault.startswith(forged) for fault in wrong)
    assert any(fault.startswith("provenance.json: is not the file that was signed") for fault in wrong)


@pytest.mark.parametrize(
    "changes", [{"identity": IDENTITY + "2"}, {"issuer": ISSUER + "2"}], ids=lambda changes: next(iter(changes))
)
def test_another_identity_or_provider_is_refused(changes, folder, sigstore):
    wrong = verify.verify(str(folder), keyless=named(sigstore, **changes)).faults
    assert wrong[0].startswith(f"manifest.json: names the signer {IDENTITY} of {ISSUER}, not ")
    assert sum("is not signed by" in fault for fault in wrong) == len(GATES) + 2


def test_another_sigstore_is_refused(folder, tmp_path, sigstore):
    with serving(tmp_path) as other:
        wrong = verify.verify(str(folder), keyless=named(other)).faults
    assert sum("is not signed by" in fault for fault in wrong) == len(GATES) + 2


def part(bundle: dict, *path):
    for key in path:
        bundle = bundle[key]
    return bundle


@pytest.mark.parametrize(
    "path",
    [
        ("dsseEnvelope", "payload"),
        ("verificationMaterial", "certificate", "rawBytes"),
        ("verificationMaterial", "tlogEntries", 0, "canonicalizedBody"),
        ("verificationMaterial", "tlogEntries", 0, "inclusionPromise", "signedEntryTimestamp"),
        ("verificationMaterial", "tlogEntries", 0, "inclusionProof", "rootHash"),
    ],
    ids=lambda path: path[-1],
)
def test_a_change_of_any_part_of_a_bundle_is_caught(path, sigstore, published):
    trust = KeylessTrust(named(sigstore))
    bundle = json.loads((published / "model.sig").read_text())
    assert trust.opened(bundle)["predicateType"].startswith("https://model_signing/")
    content = bytearray(base64.b64decode(part(bundle, *path)))
    content[len(content) // 2] ^= 1
    part(bundle, *path[:-1])[path[-1]] = base64.b64encode(content).decode()
    with pytest.raises(ValueError, match="is not signed by"):
        trust.opened(bundle)


def test_publishing_again_is_fine_and_by_another_identity_it_is_refused(line, sigstore, token, tmp_path):
    settings = SigningStep(keyless=named(sigstore))
    first = line.publish(str(tmp_path / "a"), signing=settings)
    assert line.publish(str(tmp_path / "a"), signing=settings)["manifest_sha256"] == first["manifest_sha256"]
    other = SigningStep(keyless=named(sigstore, identity=IDENTITY + "2"))
    with pytest.raises(ValueError, match="not signed by the signer of this run"):
        line.publish(str(tmp_path / "a"), signing=other)
    token.write_text(sigstore.token(subject=SUBJECT + "2"))
    with pytest.raises(ValueError, match="the signature that was just made is not signed by"):
        line.publish(str(tmp_path / "b"), signing=settings)
    assert not list((tmp_path / "b").rglob("manifest.json"))


def test_what_sigstore_refuses_or_cannot_answer_is_an_error_that_may_pass(sigstore, token):
    signer = KeylessSigner(named(sigstore))
    sigstore.down = 503
    try:
        with pytest.raises(ConnectionError, match="Rekor: .*503"):
            signer.attest(STATEMENT)
    finally:
        sigstore.down = 0
    assert KeylessTrust(named(sigstore)).opened(signer.attest(STATEMENT)) == STATEMENT
    token.write_text(sigstore.token(issuer="https://other"))
    with pytest.raises(ConnectionError, match="Fulcio: 401"):
        KeylessSigner(named(sigstore)).attest(STATEMENT)


def test_preflight_asks_for_the_token_and_the_trust_configuration(sigstore, token, tmp_path):
    settings = SigningStep(keyless=named(sigstore))
    signature.check(settings, ["/"])
    with pytest.raises(ValueError, match="signing.keyless.trust_config"):
        signature.check(settings, ["gs://b/"])
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(ValueError, match="no.json: is not Sigstore's client trust configuration"):
        signature.check(SigningStep(keyless=named(sigstore, trust_config=str(tmp_path / "no.json"))), ["/"])
    with pytest.raises(ValueError, match="issuer: is https://x, but the identity token is of"):
        signature.check(SigningStep(keyless=named(sigstore, issuer="https://x")), ["/"])
    for bad in (sigstore.token(audience="other"), sigstore.token(seconds=-60), "no token"):
        token.write_text(bad)
        with pytest.raises(ValueError, match="the identity token is no good for 'sigstore'"):
            signature.check(settings, ["/"])


def test_without_any_token_the_error_says_how_to_give_one(monkeypatch):
    for name in (ID_TOKEN_ENV, ID_TOKEN_FILE_ENV, "GITHUB_ACTIONS", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda audience: None)  # would ask the platform's services
    with pytest.raises(ValueError, match=f"set {ID_TOKEN_FILE_ENV} to the path"):
        keyless.identity_token("sigstore")


class Api(BaseHTTPRequestHandler):
    """The part of the Kubernetes API that gives tokens."""

    asked: list = []
    status = 201

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body["kind"], body["spec"]["audiences"]))
        data = json.dumps({"status": {"token": "t"}} if self.status == 201 else {"message": "no"}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


def test_a_pod_gets_its_token_from_the_kubernetes_api(tmp_path, monkeypatch):
    claims = base64.urlsafe_b64encode(json.dumps({"kubernetes.io": {"serviceaccount": {"name": "runner"}}}).encode())
    (tmp_path / "token").write_text(f"e30.{claims.decode().rstrip('=')}.sig")
    with HTTPServer(("127.0.0.1", 0), Api) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        api = Kubernetes(f"http://127.0.0.1:{server.server_port}", "team", tmp_path)
        assert api.identity_token("sigstore") == "t"
        path = "/api/v1/namespaces/team/serviceaccounts/runner/token"
        assert Api.asked == [(path, "TokenRequest", ["sigstore"])]
        monkeypatch.setattr(Api, "status", 403)
        with pytest.raises(ValueError, match=r"create on serviceaccounts/token, resourceNames \[runner\]"):
            api.identity_token("sigstore")
        server.shutdown()
        thread.join()


def test_a_key_and_keyless_are_one_too_many():
    with pytest.raises(ValueError, match="give one of them"):
        Signing(secret="s", key="k", keyless=Keyless(identity=IDENTITY, issuer=ISSUER))


WHO, BY = ["--identity", IDENTITY], ["--identity-provider", ISSUER]


@pytest.mark.parametrize(
    "flags",
    [WHO, BY, [*WHO, *BY, "--public-key", "p"], [*WHO, "--public-key", "p"], ["--trust-config", "t"],
     ["--public-key", "p", "--trust-config", "t"]],
)  # fmt: skip
def test_flags_that_name_no_signer_or_two_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        verify.main(["folder", *flags])
    assert "give --public-key alone, or both --identity and --identity-provider" in capsys.readouterr().err


def test_a_trust_configuration_that_is_not_there_is_an_error_and_no_fault_of_the_model(published):
    with pytest.raises((OSError, ValueError), match="gone.json"):
        verify.verify(str(published), keyless=Keyless(identity=IDENTITY, issuer=ISSUER, trust_config="gone.json"))


def test_a_line_on_this_machine_signs_by_the_same_identity_with_an_absolute_trust_configuration():
    config = PipelineConfig(signing={"keyless": {"identity": IDENTITY, "issuer": ISSUER, "trust_config": "trust.json"}})
    assert config.unplaced().signing == config.signing
    assert absolute_paths(config).signing.trust_config == str(Path("trust.json").absolute())
