"""Names of places: what a path or URL means, which store serves it, and how its errors read.

Chained ``::`` URLs and protocols without a line in ``_PACKAGES`` are refused.
"""

from __future__ import annotations

import errno
import os
import random
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote, unquote_to_bytes

import fsspec

__all__ = [
    "canonical",
    "explain",
    "filesystem",
    "is_local",
    "join",
    "local_path",
    "local_uri",
    "refusal",
    "split",
    "with_retries",
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
    "memory": "fsspec",
}
_SAME_STORE = {"s3a": "s3", "gcs": "gs"}  # one spelling, so that one file has one name
_URL_HEAD = re.compile(r"[A-Za-z0-9+.:-]+")

_ATTEMPTS = 3  # on top of those that s3fs and gcsfs make by themselves
_FIRST_WAIT_S = 0.3
_TRANSIENT_CODES = {
    errno.EAGAIN,
    errno.EBUSY,  # S3: slow down, unavailable
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EREMOTEIO,  # S3: internal error
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_TRANSIENT_CLASSES = {
    "aiohttp.client_exceptions.ClientError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.IncompleteReadError",
}

_T = TypeVar("_T")


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
    if protocol not in _PACKAGES:
        known = ", ".join(f"{name}://" for name in _PACKAGES if name not in _SAME_STORE)
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
    return f"{protocol}://{path.rstrip('/')}"


def join(folder: str, *names: str) -> str:
    """The path of ``names`` below ``folder``."""
    return "/".join([folder.rstrip("/"), *names])


def split(uri: str) -> tuple[str, str]:
    """The protocol and what its store calls the file; what is no URL is a path, made absolute here."""
    protocol = _protocol(uri)
    if protocol != "file":
        return protocol, uri.partition("://")[2]
    if uri[:7].lower() == "file://":
        return protocol, os.path.abspath(os.fsdecode(unquote_to_bytes(uri[7:])))
    return protocol, os.path.abspath(os.path.expanduser(uri))


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


def filesystem(protocol: str) -> Any:
    """The instance that all threads of this process share."""
    options = {"config_kwargs": {"max_pool_connections": 64}} if protocol == "s3" else {}
    return fsspec.filesystem(protocol, use_listings_cache=False, **options)  # others publish meanwhile


def with_retries(call: Callable[[], _T]) -> _T:
    """What ``call`` returns, at the third try if the first two fail for reasons that pass."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return call()
        except Exception as error:
            if not _is_transient(error):
                raise
        time.sleep(_FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.5))
    return call()


def explain(error: BaseException) -> str:
    """What a store's error says, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def _is_transient(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in _TRANSIENT_CODES:
        return True
    names = {f"{base.__module__}.{base.__qualname__}" for base in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or bool(names & _TRANSIENT_CLASSES)
