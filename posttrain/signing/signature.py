"""Signs a model that is about to be published, and checks the signature of one that is.

manifest, chain, signer (a key or the identity of this pod) -> texts of attestations.jsonl and model.sig
published folder, trusted signer -> every fault of these two, one line each

attestations.jsonl has one DSSE envelope a line, or, where it is signed without a key, one Sigstore bundle. model.sig is
an OpenSSF Model Signing signature on every other file of the folder, manifest.json and attestations.jsonl included;
`model_signing verify key` and `model_signing verify sigstore` read it.
"""

import json
from typing import Any

from pydantic import ValidationError

from posttrain import storage
from posttrain.config import SigningStep
from posttrain.signing import keyless, statements
from posttrain.signing.envelope import KeySigner, KeyTrust, signing_key
from posttrain.signing.keyless import KeylessSigner, KeylessTrust
from posttrain.step.provenance import Provenance
from posttrain.step.published import ATTESTATIONS, MANIFEST, PROVENANCE, SIGNATURE, Manifest

Json = dict[str, Any]
Signer = KeySigner | KeylessSigner
Trust = KeyTrust | KeylessTrust


def signer_of(settings: SigningStep) -> Signer:
    """Returns what signs in this process.

    Raises:
        ValueError: there is no key, or no good one. (Of the identity of a pod it is asked when it signs.)
    """
    return KeylessSigner(settings.keyless) if settings.keyless else KeySigner(signing_key())


def check(settings: SigningStep, prefixes: list[str]) -> None:
    """Checks before a run that its end will be able to sign.

    Raises:
        ValueError: the key, the trust configuration or the identity token is missing or no good.
        OSError: one of them cannot be read.
    """
    if settings.keyless is None:
        signing_key()
        return
    if settings.keyless.trust_config:
        storage.check_allowed(settings.keyless.trust_config, prefixes, name="signing.keyless.trust_config")
    keyless.check(settings.keyless)


def sign(manifest: Manifest, chain: Provenance, signer: Signer) -> dict[str, str]:
    """Returns name -> text of the files that sign a model, in the order in which they are to be written."""
    made = statements.attestations(manifest, chain)
    attested = "".join(_line(signer.attest(statement)) for statement in made)
    files = statements.signed_files(manifest, attested)
    whole = signer.seal(statements.model_signature(files, model_name=manifest.model_name))
    return {ATTESTATIONS: attested, SIGNATURE: _line(whole)}


def faults(published: str, manifest: Manifest, chain: Provenance, trust: Trust) -> list[str]:
    """Lists everything for which this signer does not answer. That the files are the manifest's is checked before.

    Raises:
        OSError: the storage does not answer.
    """
    if manifest.signed_with is None:
        return [f"{MANIFEST}: the model is not signed: {trust.name} does not answer for it"]
    signed_with = manifest.signed_with
    wrong = [] if signed_with == trust.name else [f"{MANIFEST}: names the signer {signed_with}, not {trust.name}"]
    try:
        texts = {name: _read(published, name) for name in (ATTESTATIONS, SIGNATURE)}
    except FileNotFoundError as error:
        return [*wrong, f"{SIGNATURE}: cannot be checked: {error}"]
    wrong += _signature_faults(texts, manifest, trust)
    return wrong + _attestation_faults(texts[ATTESTATIONS], manifest, chain, trust)


def _read(published: str, name: str) -> str:
    return storage.read_bytes(storage.join(published, name)).decode(errors="replace")


def _signature_faults(texts: dict[str, str], manifest: Manifest, trust: Trust) -> list[str]:
    """Checks that the signature is one of this signer on exactly these files."""
    try:
        statement = trust.opened(json.loads(texts[SIGNATURE]))
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


def _attestation_faults(text: str, manifest: Manifest, chain: Provenance, trust: Trust) -> list[str]:
    """Checks that each attestation is signed, and that together they say what manifest and chain say."""
    attested, wrong = {}, []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            statement = trust.opened(json.loads(line))
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
