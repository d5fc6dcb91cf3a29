"""A stand-in for a private Sigstore on loopback: an identity provider, Fulcio with its log of certificates, and Rekor.

What it answers is real: certificates with embedded time stamps of the log, entries with a Merkle proof, all of which
sigstore itself checks against the trust configuration that is written for it.
"""

import base64
import hashlib
import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ISSUER = "https://kubernetes.default.svc.cluster.local"
SUBJECT = "system:serviceaccount:team:pipeline-runner"
IDENTITY = "https://kubernetes.io/namespaces/team/serviceaccounts/pipeline-runner"
ISSUER_OID = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
SCT_OID = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
START = {"start": "2020-01-01T00:00:00Z"}


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def public_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: ec.EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha256(public_bytes(key)).digest()


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def root_of(leaves: list[bytes]) -> bytes:
    """The Merkle tree hash of RFC 6962."""
    if len(leaves) == 1:
        return leaves[0]
    middle = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + root_of(leaves[:middle]) + root_of(leaves[middle:])).digest()


def proof_of(leaves: list[bytes], index: int) -> list[bytes]:
    """The audit path of RFC 6962."""
    if len(leaves) == 1:
        return []
    middle = 1 << (len(leaves) - 1).bit_length() - 1
    if index < middle:
        return [*proof_of(leaves[:middle], index), root_of(leaves[middle:])]
    return [*proof_of(leaves[middle:], index - middle), root_of(leaves[:middle])]


@dataclass
class Sigstore:
    """The keys of all services, and what they have done."""

    folder: Path
    provider: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    authority: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    certificate_log: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    log: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    entries: list[bytes] = field(default_factory=list)  # bodies of the transparency log
    url: str = ""
    down: int = 0  # status with which the log answers instead

    def __post_init__(self):
        self.root = self._root()

    @property
    def trust_config(self) -> Path:
        """The file with the URLs and keys."""
        return self.folder / "trust_config.json"

    def token(self, *, subject: str = SUBJECT, audience: str = "sigstore", issuer: str = ISSUER, seconds=600) -> str:
        """A token as the Kubernetes API gives it to a service account."""
        now = int(time.time())
        claims = {"iss": issuer, "sub": subject, "aud": [audience], "iat": now - 10, "nbf": now - 10}
        return jwt.encode(claims | {"exp": now + seconds}, self.provider, algorithm="ES256")

    def write(self) -> None:
        """Writes the trust configuration."""
        service = [{"url": self.url, "majorApiVersion": 1, "validFor": START, "operator": "test"}]
        signing = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": service, "oidcUrls": service, "rekorTlogUrls": service, "rekorTlogConfig": {"selector": "ANY"},
            "tsaUrls": [], "tsaConfig": {"selector": "ANY"},
        }  # fmt: skip
        chain = {"certificates": [{"rawBytes": base64_text(self.root.public_bytes(Encoding.DER))}]}
        authority = {
            "subject": {"organization": "test", "commonName": "test"}, "uri": self.url, "certChain": chain,
            "validFor": START,
        }  # fmt: skip
        trusted = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self._log(self.log)], "certificateAuthorities": [authority],
            "ctlogs": [self._log(self.certificate_log)], "timestampAuthorities": [],
        }  # fmt: skip
        kind = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
        whole = {"mediaType": kind, "trustedRoot": trusted, "signingConfig": signing}
        self.trust_config.write_text(json.dumps(whole), encoding="utf-8")
        (self.folder / "trusted_root.json").write_text(json.dumps(trusted), encoding="utf-8")

    def _log(self, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
        public = {"rawBytes": base64_text(public_bytes(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256"}
        return {
            "baseUrl": self.url, "hashAlgorithm": "SHA2_256", "publicKey": public | {"validFor": START},
            "logId": {"keyId": base64_text(key_id(key))},
        }  # fmt: skip

    def certify(self, token: str, request: bytes) -> list[str]:
        """Fulcio: a certificate for whoever the token names, for ten minutes."""
        claims = jwt.decode(token, self.provider.public_key(), algorithms=["ES256"], audience="sigstore", issuer=ISSUER)
        asked = x509.load_pem_x509_csr(request)
        assert asked.is_signature_valid
        _, _, namespace, name = claims["sub"].split(":")
        identity = f"https://kubernetes.io/namespaces/{namespace}/serviceaccounts/{name}"
        builder = self._leaf(asked.public_key(), identity, claims["iss"])
        before = builder.sign(self.authority, hashes.SHA256())
        stamped = builder.add_extension(self._stamp(before), critical=False).sign(self.authority, hashes.SHA256())
        return [one.public_bytes(Encoding.PEM).decode() for one in (stamped, self.root)]

    def _leaf(self, public_key: Any, identity: str, issuer: str) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key())
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
             "crl_sign", "encipher_only", "decipher_only"), False,
        )  # fmt: skip
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(minutes=10))
            .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(authority, critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
            .add_extension(x509.UnrecognizedExtension(ISSUER_OID, issuer.encode()), critical=False)
        )

    def _stamp(self, certificate: x509.Certificate) -> x509.UnrecognizedExtension:
        """The signed certificate timestamp of RFC 6962, as an extension."""
        milliseconds, body = int(time.time() * 1000), certificate.tbs_certificate_bytes
        entry = hashlib.sha256(public_bytes(self.authority)).digest() + len(body).to_bytes(3, "big") + body
        signature = sign(self.certificate_log, struct.pack("!BBQH", 0, 0, milliseconds, 1) + entry + b"\0\0")
        stamp = b"\0" + key_id(self.certificate_log) + struct.pack("!QH", milliseconds, 0) + b"\x04\x03"
        stamp += struct.pack("!H", len(signature)) + signature
        stamps = struct.pack("!HH", len(stamp) + 2, len(stamp)) + stamp
        assert len(stamps) < 128  # then its length is one byte
        return x509.UnrecognizedExtension(SCT_OID, b"\x04" + bytes([len(stamps)]) + stamps)

    def _root(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "encipher_only", "decipher_only"), False,
        )  # fmt: skip
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.authority.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime.now(UTC) + timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.authority.public_key()), critical=False)
            .sign(self.authority, hashes.SHA256())
        )

    def enter(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """Rekor: an entry of the log, with its proof."""
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        digests = {"envelopeHash": content["envelope"].encode(), "payloadHash": base64.b64decode(envelope["payload"])}
        (signature,), (verifier,) = envelope["signatures"], content["verifiers"]
        spec = {name: {"algorithm": "sha256", "value": hashlib.sha256(of).hexdigest()} for name, of in digests.items()}
        spec["signatures"] = [{"signature": signature["sig"], "verifier": verifier}]
        body = rfc8785.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        self.entries.append(body)
        index = len(self.entries) - 1
        entry = {
            "body": base64_text(body), "integratedTime": int(time.time()), "logID": key_id(self.log).hex(),
            "logIndex": index,
        }  # fmt: skip
        promise = base64_text(sign(self.log, rfc8785.dumps(entry)))
        verification = {"signedEntryTimestamp": promise, "inclusionProof": self._proof(index)}
        return {f"{index:064x}": entry | {"verification": verification}}

    def _proof(self, index: int) -> dict[str, Any]:
        leaves = [hashlib.sha256(b"\0" + body).digest() for body in self.entries]
        root = root_of(leaves)
        note = f"test log\n{len(leaves)}\n{base64_text(root)}\n"
        signature = base64_text(key_id(self.log)[:4] + sign(self.log, note.encode()))
        return {
            "logIndex": index, "treeSize": len(leaves), "rootHash": root.hex(),
            "hashes": [one.hex() for one in proof_of(leaves, index)],
            "checkpoint": f"{note}\n\u2014 test.log {signature}\n",
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        sigstore: Sigstore = self.server.sigstore
        if self.path == "/api/v2/signingCert":
            token = self.headers["Authorization"].removeprefix("Bearer ")
            try:
                chain = sigstore.certify(token, base64.b64decode(content["certificateSigningRequest"]))
            except jwt.InvalidTokenError as error:
                self._send(401, {"message": str(error)})
                return
            self._send(200, {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}})
        elif self.path == "/api/v1/log/entries":
            self._send(sigstore.down, {}) if sigstore.down else self._send(201, sigstore.enter(content))
        else:
            self._send(404, {})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Sigstore]:
    """Runs the services while the block runs."""
    sigstore = Sigstore(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.sigstore = sigstore
        sigstore.url = f"http://127.0.0.1:{server.server_port}"
        sigstore.write()
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield sigstore
        finally:
            server.shutdown()
            thread.join()
