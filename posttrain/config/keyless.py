"""The signer of published models without a key: the subsection `signing.keyless` of the configuration."""

from pydantic import Field

from posttrain.config.section import Section

ID_TOKEN_FILE_ENV = "POSTTRAIN_ID_TOKEN_FILE"  # path of an identity token, such as a projected one
ID_TOKEN_ENV = "SIGSTORE_ID_TOKEN"  # an identity token, as sigstore's own command line reads it


class Keyless(Section):
    """Signing with Sigstore, with a certificate for the identity of the pod instead of a key."""

    # identity in the certificate; for a pod https://kubernetes.io/namespaces/NAMESPACE/serviceaccounts/NAME
    identity: str = Field(min_length=1)
    issuer: str = Field(min_length=1)  # URL of the identity provider that vouches for it
    # Sigstore's client trust configuration, with the URLs and keys of Fulcio and Rekor: path, gs:// or s3://; null: the
    # public instance
    trust_config: str | None = None
    audience: str = "sigstore"  # audience that Fulcio expects in the identity token
