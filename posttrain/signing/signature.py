"""Signs a model that is about to be published, and checks the signature of one that is.

manifest, chain, private key -> texts of attestations.jsonl and model.sig
published folder, public key -> every fault of these two, one line each

attestations.jsonl has one DSSE envelope a line. model.sig is an OpenSSF Model Signing signature on every other file of
the folder, manifest.json and attestations.jsonl included; `model_signing verify key` reads it.
"""

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from posttrain import storage
from posttrain.signing import envelope, statements
from posttrain.step.provenance import Provenance
from posttrain.step.published import ATTESTATIONS, MANIFEST, PROVENANCE, SIGNATURE, Manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

Json = dict[str, Any]


def sign(manifest: Manifest, chain: Provenance, key: "ec.EllipticCurvePrivateKey") -> dict[str, str]:
    """Returns name -> text of the files that sign a model, in the order in which they are to be written."""
    made = statements.attestations(manifest, chain)
    attested = "".join(_line(envelope.signed(statement, key)) for statement in made)
    files = statements.signed_files(manifest, attested)
    whole = envelope.signed(statements.model_signature(files, model_name=manifest.model_name), key)
    return {ATTESTATIONS: attested, SIGNATURE: _line(envelope.bundle(whole, key.public_key()))}


def faults(published: str, manifest: Manifest, chain: Provenance, public_key: "ec.EllipticCurvePublicKey") -> list[str]:
    """Lists everything for which this key does not answer; that the files are those of the manifest is checked before.

    Raises:
        OSError: the storage does not answer.
    """
    name = envelope.key_name(public_key)
    if manifest.signed_with is None:
        return [f"{MANIFEST}: the model is not signed: nobody answers for it with the key {name[:12]}"]
    wrong = [] if manifest.signed_with == name else [f"{MANIFEST}: names the key {manifest.signed_with}, not {name}"]
    try:
        texts = {name: _read(published, name) for name in (ATTESTATIONS, SIGNATURE)}
    except FileNotFoundError as error:
        return [*wrong, f"{SIGNATURE}: cannot be checked: {error}"]
    wrong += _signature_faults(texts, manifest, public_key)
    return wrong + _attestation_faults(texts[ATTESTATIONS], manifest, chain, public_key)


def _read(published: str, name: str) -> str:
    return storage.read_bytes(storage.join(published, name)).decode(errors="replace")


def _signature_faults(texts: dict[str, str], manifest: Manifest, public_key: "ec.EllipticCurvePublicKey") -> list[str]:
    """Checks that the signature is one of this key on exactly these files."""
    try:
        bundle = json.loads(texts[SIGNATURE])
        statement = envelope.opened(bundle.get("dsseEnvelope") if isinstance(bundle, dict) else None, public_key)
    except ValueError as error:
        return [f"{SIGNATURE}: {error}"]
    wanted = statements.signed_files(manifest, texts[ATTESTATIONS])
    try:
        if statement == statements.model_signature(wanted, model_name=manifest.model_name):
            return []
    except ValueError:
        return [f"{MANIFEST}: names a SHA-256 that is none"]
    present = {one["name"]: one["digest"] for one in statement.get("predicate", {}).get("resources", [])}
    differ = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    return [f"{name}: is not the file that was signed" for name in differ] or [
        f"{SIGNATURE}: is not a signature on this model: it says something else of the same files"
    ]


def _attestation_faults(
    text: str, manifest: Manifest, chain: Provenance, public_key: "ec.EllipticCurvePublicKey"
) -> list[str]:
    """Checks that each attestation is signed, and that together they say what manifest and chain say."""
    attested, wrong = {}, []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            statement = envelope.opened(json.loads(line), public_key)
        except ValueError as error:
            wrong.append(f"{ATTESTATIONS}: line {number} {_reason(error)}")
        else:
            attested[_title(statement)] = statement
    try:
        wanted = {_title(statement): statement for statement in statements.attestations(manifest, chain)}
    except ValidationError:  # of a verdict, which the check of the chain reports
        return [*wrong, f"{ATTESTATIONS}: cannot be compared: a verdict in {PROVENANCE} is invalid"]
    wrong += [f"{ATTESTATIONS}: has no signed {title}" for title in wanted if title not in attested]
    wrong += [f"{ATTESTATIONS}: has a {title}, of which {PROVENANCE} has no word" for title in attested.keys() - wanted]
    return wrong + [
        f"{ATTESTATIONS}: the signed {title} does not say what {PROVENANCE} says: one of the two was changed"
        for title, statement in wanted.items()
        if title in attested and attested[title] != statement
    ]


def _title(statement: Json) -> str:
    gate = statement.get("predicate", {}).get("gate") if isinstance(statement, dict) else None
    return f"test result of {gate}" if gate else "provenance"


def _reason(error: ValueError) -> str:
    return "is not JSON" if isinstance(error, json.JSONDecodeError) else str(error)


def _line(value: Json) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n"
