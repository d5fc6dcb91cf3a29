"""The section `signing` of the configuration: the key that published models are signed with.

The configuration names a Kubernetes secret and a key in it. The value is a file in the pod of publish_model, and on
this machine the file that `POSTTRAIN_SIGNING_KEY` names; it is never text in the configuration, a record or a log.
"""

from posttrain.config.placement import DataKey, ObjectName, OwnSecret

SIGNING_KEY_ENV = "POSTTRAIN_SIGNING_KEY"  # path of the private key


class Signing(OwnSecret):
    """The private key that signs each published model and its attestations; without this section nothing is signed."""

    env = SIGNING_KEY_ENV
    as_file = True

    secret: ObjectName | None = None  # name of the Kubernetes secret with the key; null: POSTTRAIN_SIGNING_KEY is set
    key: DataKey | None = None  # key in the secret: a PEM file without password, of the curve P-256, P-384 or P-521
