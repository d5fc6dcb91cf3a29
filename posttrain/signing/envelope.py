"""Signs and checks statements with an elliptic curve key, in the formats that in-toto and OpenSSF Model Signing use.

statement, private key -> DSSE envelope (https://github.com/secure-systems-lab/dsse), and around it a Sigstore bundle

The keys are those of OpenSSF Model Signing: the curves P-256, P-384 and P-521, each with the hash of its size. The name
of a key is the SHA-256 of its public half in PEM, as in the bundles of `model_signing`.
"""

import base64
import binascii
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.signing import SIGNING_KEY_ENV

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}  # curve -> hash of its signatures
REMEDY = "give a PEM file of the curve P-256, P-384 or P-521"

Json = dict[str, Any]


@dataclass(frozen=True)
class KeyTrust:
    """Opens what a key has signed."""

    public_key: "ec.EllipticCurvePublicKey"

    @property
    def name(self) -> str:
        return key_name(self.public_key)

    def opened(self, value: Any) -> Json:
        """Returns the statement of an envelope, or of the bundle around one.

        Raises:
            ValueError: it is neither, of something else, or not signed with this key.
        """
        is_bundle = isinstance(value, dict) and "dsseEnvelope" in value
        return opened(value["dsseEnvelope"] if is_bundle else value, self.public_key)


@dataclass(frozen=True)
class KeySigner:
    """Signs with a key."""

    key: "ec.EllipticCurvePrivateKey"

    @property
    def trust(self) -> KeyTrust:
        return KeyTrust(self.key.public_key())

    @property
    def name(self) -> str:
        return self.trust.name

    def attest(self, statement: Json) -> Json:
        """Returns the envelope of a statement, for a line of attestations."""
        return signed(statement, self.key)

    def seal(self, statement: Json) -> Json:
        """Returns the bundle of a statement, for a file of its own."""
        return bundle(signed(statement, self.key), self.key.public_key())


def signing_key() -> "ec.EllipticCurvePrivateKey":
    """Reads the key that publishing signs with.

    Raises:
        ValueError: no variable names its file, or the file is not such a key.
    """
    path = os.environ.get(SIGNING_KEY_ENV)
    if not path:
        raise ValueError(
            f"signing: {SIGNING_KEY_ENV} does not name the file of the private key; set it to the path of one on this "
            "machine (on a cluster it comes from the secret), or remove the section"
        )
    try:
        return read_private_key(path)
    except OSError as error:
        raise ValueError(f"signing: {path}: cannot be read ({error.strerror}); {SIGNING_KEY_ENV} names it") from None


def read_private_key(path: Path | str) -> "ec.EllipticCurvePrivateKey":
    """Reads the key that signs.

    Raises:
        ValueError: the file is not such a key, or has a password. No message contains any of it.
        OSError: the file cannot be read.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = Path(path).read_bytes()
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(f"{path}: is not a private key without a password; {REMEDY}") from None
    return _of_known_curve(key, path)


def read_public_key(path: Path | str) -> "ec.EllipticCurvePublicKey":
    """Reads the key that checks.

    Raises:
        ValueError: the file is not such a key.
        OSError: the file cannot be read.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(Path(path).read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{path}: is not a public key; {REMEDY}") from None
    return _of_known_curve(key, path)


def _of_known_curve(key: Any, path: Path | str) -> Any:
    name = getattr(getattr(key, "curve", None), "name", type(key).__name__)
    if name not in CURVES:
        raise ValueError(f"{path}: is a key of {name}; {REMEDY}")
    return key


def key_name(public_key: "ec.EllipticCurvePublicKey") -> str:
    """Returns the SHA-256 of a public key's PEM file, as `sha256sum` prints it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def signed(statement: Json, key: "ec.EllipticCurvePrivateKey") -> Json:
    """Returns the DSSE envelope of a statement."""
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    signature = key.sign(_encoded(payload), _ecdsa(key))
    entry = {"keyid": key_name(key.public_key()), "sig": base64.b64encode(signature).decode()}
    return {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE, "signatures": [entry]}


def opened(envelope: Any, public_key: "ec.EllipticCurvePublicKey") -> Json:
    """Returns the statement of an envelope that this key has signed.

    Raises:
        ValueError: it is no envelope, of something else, or not signed with this key.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(entry["sig"], validate=True) for entry in envelope["signatures"]]
        is_statement = envelope["payloadType"] == PAYLOAD_TYPE
    except (KeyError, TypeError, binascii.Error):
        raise ValueError("is not a signed statement") from None
    if len(signatures) != 1 or not is_statement:
        raise ValueError(f"is not one signature on {PAYLOAD_TYPE}")
    try:
        public_key.verify(signatures[0], _encoded(payload), _ecdsa(public_key))
    except InvalidSignature:
        raise ValueError("was changed after it was signed, or was not signed with this key") from None
    return json.loads(payload)


def bundle(envelope: Json, public_key: "ec.EllipticCurvePublicKey") -> Json:
    """Returns the Sigstore bundle of an envelope: how OpenSSF Model Signing stores a signature made with a key."""
    envelope = envelope | {"signatures": [entry | {"keyid": ""} for entry in envelope["signatures"]]}
    material = {"publicKey": {"hint": key_name(public_key)}, "tlogEntries": []}
    return {"mediaType": BUNDLE_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}


def _encoded(payload: bytes) -> bytes:
    """Returns what DSSE signs: the payload with its type and the lengths of both."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _ecdsa(key: Any) -> "ec.ECDSA":
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.ECDSA(getattr(hashes, CURVES[key.curve.name])())
