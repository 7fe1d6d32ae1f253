"""Asking a store: so many requests at once, again where the reason may pass, and never beyond a deadline."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from w2v_ray.store_config import StoreConfig, StoreLimits
from w2v_ray.stores.web_client import web_client

__all__ = ["call", "explain", "filesystem", "in_use", "retried", "run", "use"]

_CONNECTION_WAIT_S = 0.2  # before the second try; twice that before the third, and so on, more or less
_BUSY_WAIT_S = 1.0  # where the store asks for patience
_LONGEST_WAIT_S = 20.0

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
    "azure.core.exceptions.ServiceRequestError",
    "azure.core.exceptions.ServiceResponseError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.FlexibleChecksumError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.IncompleteReadError",
    "botocore.parsers.ResponseParserError",
    "gcsfs.retry.HttpError",
}
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
_BUSY_STATUS = {429, 503}
# Of an address that a client names: the user and the query may be secrets.
_ADDRESS = re.compile(r"(https?://)(?:[^\s/?#@'\"]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?", re.IGNORECASE)
_ONE_STORE = {"abfs": "az", "abfss": "az"}  # under whose name their options are

_T = TypeVar("_T")

_config: StoreConfig | None = None
_gates: dict[str, tuple[int, threading.BoundedSemaphore]] = {}
_gates_lock = threading.Lock()


def use(config: StoreConfig) -> StoreConfig:
    """Sets how this process asks stores from now on; what it says nothing about is as in the environment.

    Returns:
        What is in force now, for the worker processes of the job.

    Raises:
        ConfigError: The environment holds no such settings.
    """
    global _config
    _config = config.over(StoreConfig.from_environment(os.environ))
    return _config


def in_use() -> StoreConfig:
    """How this process asks stores.

    Raises:
        ConfigError: The environment holds no such settings.
    """
    return _config if _config is not None else use(StoreConfig())


def filesystem(protocol: str) -> Any:
    """The file system of a store, one for all threads of this process."""
    config, name = in_use(), _ONE_STORE.get(protocol, protocol)
    options, limits = config.file_system_options(name), config.limits(name)
    if protocol == "http":
        options["get_client"] = web_client
        options["client_kwargs"] = {
            **options.get("client_kwargs", {}),
            "connect_timeout_s": limits.connect_timeout_s,
            "read_timeout_s": limits.read_timeout_s,
            "max_requests": limits.max_requests,
        }
    if protocol == "s3":
        given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {}) | options.get("config_kwargs", {})
        options["config_kwargs"] = {
            "max_pool_connections": limits.max_requests,
            "connect_timeout": limits.connect_timeout_s,
            "read_timeout": limits.read_timeout_s,
            "retries": {"total_max_attempts": 1, "mode": "standard"},  # those of this file are enough
            **given,
        }
    store = fsspec.filesystem(protocol, use_listings_cache=False, **options)  # others publish meanwhile
    if protocol == "s3":
        store.retries = 1
    return store


def call(protocol: str, method: str, *args: Any, **kwargs: Any) -> Any:
    """What a method of the store's file system returns; errors as of `retried`."""
    store = filesystem(protocol)
    function = getattr(store, method)

    def attempt(left_s: float) -> Any:
        timeout = {"timeout": left_s} if isinstance(store, AsyncFileSystem) else {}
        return function(*args, **kwargs, **timeout)

    return retried(protocol, attempt)


def run(protocol: str, request: Callable[[Any], Awaitable[_T]]) -> _T:
    """What a request to the file system of an asynchronous store comes to; errors as of `retried`."""
    store = filesystem(protocol)

    def attempt(left_s: float) -> _T:
        result: _T = sync(store.loop, request, store, timeout=left_s)
        return result

    return retried(protocol, attempt)


def retried(protocol: str, attempt: Callable[[float], _T]) -> _T:
    """What ``attempt`` returns, given the seconds it has; tried again where its error may pass.

    Raises:
        TimeoutError: The deadline passed.
        Exception: The error of the last try.
    """
    limits = in_use().limits(_ONE_STORE.get(protocol, protocol))
    number = 0
    spent_s = 0.0  # without the wait for a place: what others are slow with is theirs
    while True:
        number += 1
        with _place(protocol, limits):
            began = time.monotonic()
            try:
                return attempt(limits.deadline_s - spent_s)
            except Exception as error:
                spent_s += time.monotonic() - began
                if not _is_transient(error):
                    raise
                wait_s = _wait_s(error, number)
                if spent_s + wait_s >= limits.deadline_s:
                    raise TimeoutError(
                        f"no whole answer within {limits.deadline_s:g} s: {explain(error)}"
                    ) from error
                if number == limits.attempts:
                    raise
        time.sleep(wait_s)
        spent_s += wait_s


def explain(error: BaseException) -> str:
    """What a store's error says, in a few words."""
    names = _class_names(error)
    endpoint = getattr(error, "kwargs", {}).get("endpoint_url")
    if endpoint:  # of botocore: it names the whole address of the request
        server = "/".join(str(endpoint).split("/")[:3])
        if "botocore.exceptions.EndpointConnectionError" in names | _class_names(error.__cause__):
            return f"the endpoint {server} cannot be reached"
        return f"the endpoint {server} does not answer as it should ({type(error).__name__})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    text = _ADDRESS.sub(r"\1\2", " ".join(str(error).split()))
    return text[:200] or type(error).__name__


@contextlib.contextmanager
def _place(protocol: str, limits: StoreLimits) -> Iterator[None]:
    """One of the places for requests in flight."""
    with _gates_lock:
        size, gate = _gates.get(protocol, (0, None))
        if gate is None or size != limits.max_requests:
            gate = threading.BoundedSemaphore(limits.max_requests)
            _gates[protocol] = limits.max_requests, gate
    with gate:
        yield


def _wait_s(error: BaseException, number: int) -> float:
    code = getattr(error, "errno", None)
    is_busy = code == errno.EBUSY or getattr(error, "status", None) in _BUSY_STATUS
    first_s = _BUSY_WAIT_S if is_busy else _CONNECTION_WAIT_S
    return min(_LONGEST_WAIT_S, first_s * 2.0 ** (number - 1)) * random.uniform(0.5, 1.5)


def _is_transient(error: BaseException) -> bool:
    if getattr(getattr(error, "os_error", None), "errno", None) == errno.EACCES:
        return False  # of aiohttp: an address that is never asked
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return status in _TRANSIENT_STATUS
    if isinstance(error, OSError) and error.errno in _TRANSIENT_CODES:
        return True
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return bool(_class_names(error) & _TRANSIENT_CLASSES)


def _class_names(error: BaseException | None) -> set[str]:
    return {f"{base.__module__}.{base.__qualname__}" for base in type(error).__mro__}
