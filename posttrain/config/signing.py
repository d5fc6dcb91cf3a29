"""The section `signing` of the configuration: the key that published models are signed with.

The configuration names a Kubernetes secret and a key in it. The value is a file in the pod of publish_model, and on
this machine the file that `POSTTRAIN_SIGNING_KEY` names; it is never text in the configuration, a record or a log.
"""

from typing import Self

from pydantic import model_validator

from posttrain.config.keyless import Keyless
from posttrain.config.placement import DataKey, ObjectName, OwnSecret

SIGNING_KEY_ENV = "POSTTRAIN_SIGNING_KEY"  # path of the private key


class Signing(OwnSecret):
    """The signer of each published model and its attestations; without this section nothing is signed."""

    env = SIGNING_KEY_ENV
    as_file = True

    secret: ObjectName | None = None  # name of the Kubernetes secret with the key; null: POSTTRAIN_SIGNING_KEY is set
    key: DataKey | None = None  # key in the secret: a PEM file without password, curve P-256, P-384 or P-521
    keyless: Keyless | None = None  # sign with Sigstore and the pod's identity; null: with a key

    @model_validator(mode="after")
    def _has_a_key_or_none(self) -> Self:
        if self.keyless and self.secret:
            raise ValueError(f"secret {self.secret!r} and keyless: give one of them")
        return self

    @property
    def trust_config(self) -> str | None:
        """The address of the trust configuration, if there is one."""
        return self.keyless and self.keyless.trust_config
