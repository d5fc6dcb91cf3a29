"""The section `signing` of the configuration: the key that published models are signed with.

The configuration names a Kubernetes secret and a key in it. The value is a file in the pod of publish_model, and on
this machine the file that `POSTTRAIN_SIGNING_KEY` names; it is never text in the configuration, a record or a log.
"""

from pydantic import model_validator

from posttrain.config.placement import DataKey, ObjectName, SecretEnv
from posttrain.config.section import Section

SIGNING_KEY_ENV = "POSTTRAIN_SIGNING_KEY"  # path of the private key


class Signing(Section):
    """The private key that signs each published model and its attestations; without this section nothing is signed."""

    secret: ObjectName | None = None  # name of the Kubernetes secret with the key; null: POSTTRAIN_SIGNING_KEY is set
    key: DataKey | None = None  # key in the secret: a PEM file without password, of the curve P-256, P-384 or P-521

    @model_validator(mode="after")
    def _names_a_key_in_a_secret(self):
        if (self.secret is None) != (self.key is None):
            raise ValueError(f"secret {self.secret!r}, key {self.key!r}: give both, or neither")
        return self

    @property
    def env(self) -> str:
        """The variable that names the file of the key."""
        return SIGNING_KEY_ENV

    @property
    def secrets(self) -> list[SecretEnv]:
        """The variable that names the file of the key, if it comes from a secret."""
        if self.secret is None:
            return []
        return [SecretEnv(env=SIGNING_KEY_ENV, secret=self.secret, key=self.key, as_file=True)]
