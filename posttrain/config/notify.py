"""The section `notify` of the configuration: the webhook that hears how a run goes.

The configuration names a Kubernetes secret and a key in it, whose value is the webhook's URL. On this machine the URL
is in the variable `POSTTRAIN_WEBHOOK_URL`. It is never text in the configuration, a record or a log.
"""

from typing import Literal

from pydantic import model_validator

from posttrain.config.placement import DataKey, ObjectName, SecretEnv
from posttrain.config.section import Section

WEBHOOK_ENV = "POSTTRAIN_WEBHOOK_URL"


class Notify(Section):
    """The webhook that gets a message, in Slack's format, when a gate stops a run and when a run ends."""

    secret: ObjectName | None = None  # name of the Kubernetes secret with the URL; null: POSTTRAIN_WEBHOOK_URL is set
    key: DataKey | None = None  # key in the secret
    at: list[Literal["stop", "end"]] = ["stop", "end"]  # when: a gate stops the run; the run has ended, however

    @model_validator(mode="after")
    def _names_a_key_in_a_secret(self):
        if (self.secret is None) != (self.key is None):
            raise ValueError(f"secret {self.secret!r}, key {self.key!r}: give both, or neither")
        return self

    @property
    def env(self) -> str:
        """The variable with the URL."""
        return WEBHOOK_ENV

    @property
    def secrets(self) -> list[SecretEnv]:
        """The variable with the URL, if it comes from a secret."""
        return [SecretEnv(env=WEBHOOK_ENV, secret=self.secret, key=self.key)] if self.secret else []
