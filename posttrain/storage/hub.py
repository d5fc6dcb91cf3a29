"""The Hugging Face Hub as this process sees it: its endpoint, our token, and its refusals in words.

environment HF_TOKEN, HF_ENDPOINT -> a client; an error of the client -> one line with the parameter and the remedy
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from posttrain import storage
from posttrain.config.placement import TOKEN_ENV, UPLOAD_TOKEN_ENV


def access(token_env: str = TOKEN_ENV) -> dict[str, Any]:
    """Endpoint and token for every call. A token that somebody has left on this machine does not count."""
    return {"endpoint": os.environ.get("HF_ENDPOINT"), "token": os.environ.get(token_env) or False}


def client(token_env: str = TOKEN_ENV) -> Any:
    from huggingface_hub import HfApi

    return HfApi(**access(token_env))


@contextmanager
def errors(name: str, uri: str, *, otherwise: str | None = None) -> Iterator[None]:
    """Says what the Hub refused: ValueError where that is final, ConnectionError where it may pass.

    Args:
        name: of the parameter whose value is `uri`.
        otherwise: what the value may be if not a Hub id: folder, file.
    """
    import httpx
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except GatedRepoError as error:
        remedy = f"accept its terms there, and give the token of that account in {TOKEN_ENV}"
        raise ValueError(f"{name}: {uri!r} is gated on the Hub; {remedy}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        found = f"neither a {otherwise} nor readable on the Hub" if otherwise else "not readable on the Hub"
        remedy = f"check it, a gated or private repository needs {TOKEN_ENV}"
        raise ValueError(f"{name}: {uri!r} is {found}; {remedy}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise ValueError(f"{name}: {uri!r}: the Hub does not know our token; put a new one in its place") from error
        raise ConnectionError(f"{name}: {uri!r}: the Hub answered {status}; try again") from error
    except httpx.HTTPError as error:
        found = f" is no {otherwise}, and" if otherwise else ":"
        raise ConnectionError(f"{name}: {uri!r}{found} the Hub does not answer ({error})") from error


def check_data_set(uri: str, *, name: str) -> None:
    repo, revision = storage.hub_id(uri)
    with errors(name, uri, otherwise="file"):
        client().dataset_info(repo, revision=revision)


def check_upload(repo: str, *, name: str) -> None:
    """Refuses a repository into which the token may not write, or which it may not make."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    token_env = UPLOAD_TOKEN_ENV if os.environ.get(UPLOAD_TOKEN_ENV) else TOKEN_ENV
    if not os.environ.get(token_env):
        raise ValueError(f"{name}: {repo!r} needs a token with write access; give publish_model one in {TOKEN_ENV}")
    api = client(token_env)
    with errors(name, repo):
        try:
            api.auth_check(repo, write=True)
        except RepositoryNotFoundError:
            _check_namespace(repo, api.whoami(), name=name)
        except HfHubHTTPError as error:
            if error.response.status_code != 403:
                raise
            raise ValueError(f"{name}: our token may not write to {repo!r}; give one with write access") from error


def _check_namespace(repo: str, account: dict, *, name: str) -> None:
    """`repo` is not there yet: publish_model makes it, where the account may."""
    namespaces = [account["name"], *(organisation["name"] for organisation in account.get("orgs", []))]
    if repo.split("/")[0] not in namespaces:
        remedy = f"our token can make one below {' or '.join(namespaces)} alone"
        raise ValueError(f"{name}: {repo!r} is not there, and {remedy}; give such a name, or another token")
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"{name}: {repo!r} is not there, and our token can only read; give one with write access")
