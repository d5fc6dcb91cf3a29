"""The section `notify` of the configuration: the webhook that gets messages about a run.

The configuration names a Kubernetes secret and a key in it, whose value is the webhook's URL. On this machine the URL
is in the variable `POSTTRAIN_WEBHOOK_URL`. It is never text in the configuration, a record or a log.
"""

from typing import Literal

from posttrain.config.placement import DataKey, ObjectName, OwnSecret

WEBHOOK_ENV = "POSTTRAIN_WEBHOOK_URL"


class Notify(OwnSecret):
    """The webhook that gets a message, in Slack's format, when a gate stops a run and when a run ends."""

    env = WEBHOOK_ENV

    secret: ObjectName | None = None  # name of the Kubernetes secret with the URL; null: POSTTRAIN_WEBHOOK_URL is set
    key: DataKey | None = None  # key in the secret
    at: list[Literal["stop", "end"]] = ["stop", "end"]  # when: a gate stops the run; the run ends in any way
