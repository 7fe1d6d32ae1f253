"""Names of places: what a path or URL means, and which store serves it.

Chained ``::`` URLs and protocols without a line in ``_PACKAGES`` are refused, web addresses where nobody
has allowed them.
"""

from __future__ import annotations

import os
import posixpath
import re
from urllib.parse import quote, unquote_to_bytes

import fsspec

from w2v_ray.stores.addresses import web_refusal
from w2v_ray.stores.requests import in_use

__all__ = [
    "canonical",
    "is_local",
    "is_read_only",
    "join",
    "local_path",
    "local_uri",
    "place_named_in",
    "refusal",
    "split",
]

_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
    "memory": "fsspec",
}
# One spelling, so that one file has one name and one store its options.
_SAME_STORE = {"s3a": "s3", "gcs": "gs", "https": "http"}
_URL_HEAD = re.compile(r"[A-Za-z0-9+.:-]+")


def refusal(uri: str) -> str | None:
    """Why no store here serves ``uri``, as the end of a sentence with the fix; None where one does."""
    head, separator, rest = uri.partition("://")
    protocol = head.lower()
    if "\0" in uri:
        return "holds a NUL character, which no path can; remove it"
    if not separator or not _URL_HEAD.fullmatch(head):
        return None
    if "::" in head or re.search(r"::[^/]*://", rest):
        return "is a chained URL, which is never followed; name the file or folder itself"
    if protocol == "file":
        return None if rest.startswith("/") else "is a file URL without an absolute path; write file:///path"
    if protocol in ("http", "https"):
        if (reason := web_refusal(uri)) is not None:
            return reason
        if not in_use().allow_http:
            return "is a web address, which is read only with --allow-http (in a job file `allow_http: true`)"
    if protocol not in _PACKAGES:
        known = ", ".join(f"{name}://" for name in _PACKAGES if name not in (*_SAME_STORE, "http"))
        return f"has a protocol that is not read here; use a local path or one of {known}"
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError:
        return f"needs the package {_PACKAGES[protocol]}; pip install {_PACKAGES[protocol]}"
    return None


def is_local(uri: str) -> bool:
    """Whether ``uri`` is a path, or a ``file://`` URL, of this machine."""
    return _protocol(uri) == "file"


def local_path(uri: str) -> str:
    """The absolute path behind a local ``uri``, as the functions of ``os`` take it."""
    protocol, path = split(uri)
    assert protocol == "file", uri
    return path


def canonical(uri: str) -> str:
    """The one spelling of ``uri`` that plans and ids use: absolute, and always encodable as UTF-8."""
    protocol, path = split(uri)
    if protocol == "file":
        return local_uri(path)
    return path if protocol == "http" else f"{protocol}://{path.rstrip('/')}"


def join(folder: str, *names: str) -> str:
    """The path of ``names`` below ``folder``."""
    return "/".join([folder.rstrip("/"), *names])


def split(uri: str) -> tuple[str, str]:
    """The protocol and what its store calls the file; what is no URL is a path, made absolute here."""
    protocol = _protocol(uri)
    if protocol == "http":
        return protocol, uri  # http or https
    if protocol != "file":
        return protocol, uri.partition("://")[2]
    if uri[:7].lower() == "file://":
        return protocol, os.path.abspath(os.fsdecode(unquote_to_bytes(uri[7:])))
    return protocol, os.path.abspath(os.path.expanduser(uri))


def place_named_in(manifest: str, path: str) -> str:
    """What ``path`` means in a list or manifest: the canonical path or URL.

    A local one may name whatever whoever runs the job could name. One in a store may name files in stores,
    and one on the web files on the web; relative paths stay in its bucket, or on its server.

    Raises:
        ValueError: It may not name this; the message is the end of a sentence about the path, with the fix.
    """
    if (reason := refusal(path)) is not None:
        raise ValueError(reason)
    home, own = _protocol(manifest), _protocol(path)
    is_url = "://" in path and own != "file"
    is_absolute = path.startswith(("/", "~")) or path[:7].lower() == "file://"
    if home == "file":
        if is_url or is_absolute:
            return canonical(path)
        return canonical(os.path.join(os.path.dirname(local_path(manifest)), path))
    if is_url:
        if home == "http" != own:
            raise ValueError(
                "is elsewhere, and a list on the web may only name web addresses; copy the list here"
            )
        return canonical(path)
    if is_absolute:  # not there on every worker, and perhaps a secret of this one
        raise ValueError(
            "is a local path, and a list in a store may only name files in stores; copy the file there, or "
            "the list here"
        )
    head, _, rest = manifest.partition("://")
    bucket, slash, name = (rest.partition("?")[0] if home == "http" else rest).partition("/")
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
    if not slash or inside == ".." or inside.startswith("../"):
        raise ValueError(f"is outside {bucket!r}, where the list lies; write the whole URL")
    if home == "http":
        inside = quote(inside, safe="/%")
        return f"{head.lower()}://{bucket}/{inside}"
    return f"{home}://{bucket}/{inside}"


def is_read_only(uri: str) -> bool:
    """Whether nothing can be written where ``uri`` is."""
    return _protocol(uri) == "http"


def _protocol(uri: str) -> str:
    head, separator, _ = uri.partition("://")
    if not separator or not _URL_HEAD.fullmatch(head):
        return "file"
    return _SAME_STORE.get(head.lower(), head.lower())


def local_uri(path: str) -> str:
    """The spelling of a local path that can be encoded as UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8, which no Arrow column can hold
        return "file://" + quote(os.fsencode(path))
    return path
