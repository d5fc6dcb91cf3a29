"""Parses addresses (`gs://`, `s3://`, a path, `file://`, a Hub id), and says whether a run may use them.

URI -> kind, bucket and name, local path, Hub id. An invalid URI is a `ValueError`.
"""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

HUB_ID = re.compile(r"(?!.*(?:\.\.|--))([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]+))?", re.ASCII)

Uri = str | os.PathLike[str]


def join(root: Uri, *parts: str) -> str:
    """Returns `root/part/part`; `ValueError` for a part that is empty, absolute or leads upwards (`..`)."""
    for part in parts:
        check_name(part, below=root)
    root = os.fspath(root)
    return "/".join([root if root.endswith("://") else root.rstrip("/"), *parts]) if parts else root


def check_name(name: str, *, below: Uri | None = None) -> None:
    """Raises ValueError unless this is a relative name that means one file everywhere: in a list, a line, a URI."""
    where = f" below {os.fspath(below)}" if below else ""
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{name!r}{where} is not a relative file name; rename it: no '..', no '//', no leading '/'")
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name):
        raise ValueError(f"{name!r}{where} has a control character or broken UTF-8 in its name; rename it")


def scheme(uri: Uri) -> str:
    """Returns "gs", "s3", "hf" or "local"."""
    name, separator, _ = os.fspath(uri).partition("://")
    if not os.fspath(uri) or (separator and name not in ("gs", "s3", "hf", "file")):
        raise ValueError(f"{os.fspath(uri)!r} is not an address; use gs://, s3://, hf://, file:// or a path")
    return name if separator and name != "file" else "local"


def is_remote(uri: Uri) -> bool:
    """Tells whether `uri` needs the network: everything but a plain path and `file://`."""
    return scheme(uri) != "local"


def local_path(uri: Uri) -> Path:
    """Returns the path of a plain path or a `file://` URI."""
    if is_remote(uri):
        raise ValueError(f"{uri} is not a local path; download it first")
    text = os.fspath(uri)
    return Path(unquote(text.removeprefix("file://")) if text.startswith("file://") else text).expanduser()


def kind(uri: Uri) -> str:
    """Returns where a model or data set is: "gs", "s3", "hub" or "local".

    `org/name` is a Hub id unless there is such a local path; `hf://org/name` always is one, `./org/name` never.
    """
    name = scheme(uri)
    if name == "hf":
        hub_id(uri)
        return "hub"
    is_hub_id = name == "local" and HUB_ID.fullmatch(os.fspath(uri)) and not local_path(uri).exists()
    return "hub" if is_hub_id else name


def hub_id(uri: Uri) -> tuple[str, str | None]:
    """Returns repository id and revision (None if absent) of `hf://org/name@revision` or `org/name@revision`."""
    match = HUB_ID.fullmatch(os.fspath(uri).removeprefix("hf://"))
    if not match:
        raise ValueError(f"{os.fspath(uri)!r} is not a Hub id; write hf://org/name or hf://org/name@revision")
    return match[1], match[2]


def split(uri: str) -> tuple[str, str]:
    """Returns bucket and name of a `gs://` or `s3://` URI; the name is empty for the bucket itself."""
    bucket, _, name = uri.partition("://")[2].partition("/")
    if not bucket:
        raise ValueError(f"{uri!r} names no bucket; write {uri.partition('://')[0]}://bucket/name")
    return bucket, name.rstrip("/")


def split_file(uri: str) -> tuple[str, str]:
    """Returns bucket and name of an object."""
    bucket, name = split(uri)
    if not name:
        raise ValueError(f"{uri!r} is a bucket, not a file; write {uri.rstrip('/')}/name")
    return bucket, name


def prefix(uri: str) -> str:
    """Returns the prefix of the names of all objects below `uri`."""
    name = split(uri)[1]
    return f"{name}/" if name else ""


def place(uri: Uri) -> tuple[str, ...]:
    """Returns scheme and names from the root down to `uri`; a Hub revision counts as a name of its own."""
    root, uri = scheme(uri), os.fspath(uri)
    if root == "local" and kind(uri) == "hub":
        root, uri = "hf", f"hf://{uri}"
    if root == "local":
        return (root, *local_path(uri).resolve().parts)
    path = uri.partition("://")[2].rstrip("/")
    path, at, revision = path.partition("@") if root == "hf" else (path, "", "")
    names = path.split("/") if path else []
    if any(name in ("", ".", "..") for name in names):
        raise ValueError(f"{uri!r} contains '..', '.' or '//'; write the address without them")
    return (root, *names, at + revision) if at else (root, *names)


def check_storage_root(uri: Uri, roots: Iterable[str], *, name: str) -> None:
    """Raises `ValueError` unless `uri`, the value of parameter `name`, is one of these storage roots.

    A root that ends with `/` stands for every storage root below it. The records and results in a storage root decide
    what is published, so that allowed prefixes do not suffice: whoever may read data there may have written it.
    """
    roots = list(roots)
    try:
        names = place(uri)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    for root in roots:
        allowed = place(root)
        if names == allowed or (root.endswith("/") and names[: len(allowed)] == allowed):
            return
    raise ValueError(
        f"{name}={os.fspath(uri)!r} is not a storage root that this graph was compiled for ({', '.join(roots)}); use "
        "one of them, or add it to allowed_storage_roots and compile again"
    )


def check_allowed(uri: Uri, allowed_prefixes: Iterable[str], *, name: str) -> None:
    """Raises `ValueError` unless `uri`, the value of parameter `name`, lies under one of the prefixes.

    Compared name by name, so `gs://models` does not cover `gs://models-2`; local paths after resolving links and `..`.
    "/" covers every local path, "gs://", "s3://" and "hf://" all of theirs, `hf://org/name` every revision.
    """
    allowed_prefixes = list(allowed_prefixes)
    try:
        names = place(uri)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if any(names[: len(allowed)] == allowed for allowed in map(place, allowed_prefixes)):
        return
    looks_like_id = names[0] == "hf" and scheme(uri) != "hf"
    hint = f" (it reads as a Hub id; for a folder write ./{uri})" if looks_like_id else ""
    raise ValueError(
        f"{name}={os.fspath(uri)!r}{hint} lies under none of the allowed prefixes "
        f"({', '.join(allowed_prefixes) or 'there are none'}); use one of them, or add one to allowed_prefixes and "
        "compile again"
    )
