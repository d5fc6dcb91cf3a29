"""Signs and checks statements without a key of one's own, with Sigstore (https://docs.sigstore.dev).

identity token of this pod, statement -> Sigstore bundle: a certificate of Fulcio for a key that is used once, a DSSE
envelope, and its entry in the transparency log Rekor
bundle, identity, identity provider -> the statement, or why it is not one of theirs

The package `sigstore` does both. Where Fulcio and Rekor are, and which keys they have, is in one file of its own
format, the client trust configuration, which `model_signing --trust_config` reads too; without one it is the public
instance.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain import storage
from posttrain.config.keyless import ID_TOKEN_ENV, ID_TOKEN_FILE_ENV, Keyless
from posttrain.nodes.kubernetes import Kubernetes
from posttrain.signing.envelope import PAYLOAD_TYPE

TRUST_CONFIG = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
INSTALL = "signing.keyless: needs sigstore, which is not installed: pip install 'posttrain[keyless]'"

Json = dict[str, Any]


class KeylessSigner:
    """Signs with a certificate that Fulcio gives to the identity of this process; each signature is checked at once."""

    def __init__(self, settings: Keyless):
        self.settings, self.trust = settings, KeylessTrust(settings)

    @property
    def name(self) -> str:
        return self.trust.name

    def attest(self, statement: Json) -> Json:
        """Returns the bundle of a statement; each has the certificate and an entry in the log of its own.

        Raises:
            ValueError: there is no identity token, or Fulcio gave the certificate to another identity.
            OSError: Fulcio or Rekor refuses, or does not answer.
        """
        from sigstore import dsse

        payload = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
        with _answers():
            made = json.loads(self._signer.sign_dsse(dsse.Statement(payload)).to_json())
        try:
            self.trust.opened(made)
        except ValueError as error:
            raise ValueError(f"signing.keyless: the signature that was just made {error}") from None
        return made

    seal = attest

    @cached_property
    def _signer(self) -> Any:
        from sigstore.oidc import IdentityToken
        from sigstore.sign import Signer, SigningContext

        token = IdentityToken(identity_token(self.settings.audience), self.settings.audience)
        context = SigningContext.from_trust_config(trust_config(self.settings))
        return Signer(token, context)


class KeylessTrust:
    """Opens what an identity has signed, by the word of its identity provider."""

    def __init__(self, settings: Keyless):
        self.settings = settings

    @property
    def name(self) -> str:
        return f"{self.settings.identity} of {self.settings.issuer}"

    def opened(self, bundle: Any) -> Json:
        """Returns the statement of a bundle: certificate, log entry and signature are all checked.

        Raises:
            ValueError: it is no bundle, or not one that this identity has signed.
        """
        from sigstore.errors import Error
        from sigstore.models import Bundle

        try:
            read = Bundle.from_json(json.dumps(bundle))
            payload_type, payload = self._verifier.verify_dsse(read, self._policy)
        except (Error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"is not signed by {self.name}: {' '.join(str(error).split())[:300]}") from None
        if payload_type != PAYLOAD_TYPE:
            raise ValueError(f"is not one signature on {PAYLOAD_TYPE}")
        return json.loads(payload)

    @cached_property
    def _verifier(self) -> Any:
        from sigstore.verify import Verifier

        return Verifier(trusted_root=trust_config(self.settings, must_sign=False))

    @cached_property
    def _policy(self) -> Any:
        from sigstore.verify.policy import Identity

        return Identity(identity=self.settings.identity, issuer=self.settings.issuer)


def trust_config(settings: Keyless, *, must_sign: bool = True) -> Any:
    """Reads the trust configuration; for checking, `must_sign=False`, its trusted root, which may also be a file alone.

    Raises:
        ValueError: sigstore is not installed, or the file is not such a configuration.
        OSError: it cannot be read; without one, the public instance does not answer.
    """
    try:
        from sigstore.errors import Error
        from sigstore.models import ClientTrustConfig, TrustedRoot
        from sigstore_models.trustroot.v1 import TrustedRoot as Root
    except ImportError:
        raise ValueError(INSTALL) from None
    address = settings.trust_config
    if address is None:
        with _answers():
            whole = ClientTrustConfig.production()
        return whole if must_sign else whole.trusted_root
    raw = storage.read_bytes(address)
    try:
        if not must_sign and json.loads(raw).get("mediaType") != TRUST_CONFIG:
            return TrustedRoot(Root.from_json(raw))
        whole = ClientTrustConfig.from_json(raw.decode())
        _ = whole.signing_config if must_sign else None  # that it names a Fulcio and a Rekor
        return whole if must_sign else whole.trusted_root
    except (Error, ValueError, AttributeError) as error:
        text = " ".join(str(error).split())[:200]
        raise ValueError(
            f"signing.keyless.trust_config: {address}: is not Sigstore's client trust configuration ({text})"
        ) from None


def identity_token(audience: str) -> str:
    """Returns the token that says who this process is: from a file, a variable, the platform, or the Kubernetes API.

    Raises:
        ValueError: there is none, or the API refuses it.
        OSError: the file cannot be read, or the API does not answer.
    """
    if path := os.environ.get(ID_TOKEN_FILE_ENV):
        return Path(path).read_text(encoding="utf-8").strip()
    if token := os.environ.get(ID_TOKEN_ENV):
        return token
    from id import IdentityError
    from sigstore.oidc import detect_credential

    try:
        if token := detect_credential(audience):
            return token
    except IdentityError as error:
        raise ValueError(f"signing.keyless: the platform gives no identity token: {error}") from None
    if api := Kubernetes.of_this_pod():
        return api.identity_token(audience)
    raise ValueError(
        f"signing.keyless: there is no identity token: set {ID_TOKEN_FILE_ENV} to the path of a file with one, or "
        f"{ID_TOKEN_ENV}, or use a key file"
    )


def check(settings: Keyless) -> None:
    """Checks before a run what can be known then: the trust configuration, and that there is an identity token.

    Raises:
        ValueError: one of them is missing or no good.
        OSError: one of them cannot be read.
    """
    trust_config(settings)
    from sigstore.oidc import IdentityError, IdentityToken

    try:
        token = IdentityToken(identity_token(settings.audience), settings.audience)
    except IdentityError as error:
        raise ValueError(f"signing.keyless: the identity token is no good for {settings.audience!r}: {error}") from None
    if settings.issuer not in (token.issuer, token.federated_issuer):
        raise ValueError(f"signing.keyless.issuer: is {settings.issuer}, but the identity token is of {token.issuer}")


@contextmanager
def _answers() -> Iterator[None]:
    """Turns what the services of Sigstore refuse or leave unanswered into errors with a cause."""
    from sigstore._internal.fulcio import ExpiredCertificate
    from sigstore._internal.fulcio.client import FulcioClientError
    from sigstore._internal.rekor import RekorClientError
    from sigstore.errors import Error
    from sigstore.oidc import ExpiredIdentity, IdentityError

    try:
        yield
    except (FulcioClientError, RekorClientError) as error:
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise ConnectionError(f"signing.keyless: {type(error).__name__.removesuffix('ClientError')}: {cause}") from None
    except (ExpiredCertificate, ExpiredIdentity):
        raise ConnectionError("signing.keyless: the identity token or the certificate has expired") from None
    except (IdentityError, Error) as error:
        raise ValueError(f"signing.keyless: {' '.join(str(error).split())[:300]}") from None
