"""The Hugging Face Hub for this process: its endpoint, its token, and its refusals as error messages.

environment HF_TOKEN, HF_ENDPOINT -> a client; an error of the client -> one line with the parameter and the remedy
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from posttrain import storage
from posttrain.config.placement import TOKEN_ENV, UPLOAD_TOKEN_ENV


def access(token_env: str = TOKEN_ENV) -> dict[str, Any]:
    """Returns endpoint and token for every call. A token that is stored on this machine is not used."""
    return {"endpoint": os.environ.get("HF_ENDPOINT"), "token": os.environ.get(token_env) or False}


def client(token_env: str = TOKEN_ENV) -> Any:
    from huggingface_hub import HfApi

    return HfApi(**access(token_env))


@contextmanager
def errors(name: str, uri: str, *, otherwise: str | None = None) -> Iterator[None]:
    """Turns refusals of the Hub into ValueError if they are final, and into ConnectionError if they may pass.

    Args:
        name: the parameter whose value is `uri`.
        otherwise: the other kind of value that it may have: folder, file.
    """
    import httpx
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except GatedRepoError as error:
        remedy = f"accept its terms there, and give the token of that account in {TOKEN_ENV}"
        raise ValueError(f"{name}: {uri!r} is gated on the Hub; {remedy}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        problem = f"neither a {otherwise} nor readable on the Hub" if otherwise else "not readable on the Hub"
        remedy = f"check it; a gated or private repository needs {TOKEN_ENV}"
        raise ValueError(f"{name}: {uri!r} is {problem}; {remedy}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise ValueError(f"{name}: {uri!r}: the Hub does not know the token; replace it by a new one") from error
        raise ConnectionError(f"{name}: {uri!r}: the Hub answered {status}; try again") from error
    except httpx.HTTPError as error:
        problem = f" is not a {otherwise}, and" if otherwise else ":"
        raise ConnectionError(f"{name}: {uri!r}{problem} the Hub does not answer ({error})") from error


def check_data_set(uri: str, *, name: str) -> None:
    repo, revision = storage.hub_id(uri)
    with errors(name, uri, otherwise="file"):
        client().dataset_info(repo, revision=revision)


def check_upload(repo: str, *, name: str) -> None:
    """Refuses a repository that the token may neither write to nor create."""
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
            raise ValueError(f"{name}: the token may not write to {repo!r}; give one with write access") from error


def _check_namespace(repo: str, account: dict, *, name: str) -> None:
    """Refuses a new repository that the account may not create; publish_model creates it."""
    namespaces = [account["name"], *(organisation["name"] for organisation in account.get("orgs", []))]
    if repo.split("/")[0] not in namespaces:
        remedy = f"the token can only create one below {' or '.join(namespaces)}"
        raise ValueError(f"{name}: {repo!r} does not exist, and {remedy}; give such a name, or another token")
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"{name}: {repo!r} does not exist, and the token can only read; give one with write access")
