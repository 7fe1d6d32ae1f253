"""How stores are asked, as settings: endpoints and profiles, limits and deadlines; never credentials."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from w2v_ray.errors import ConfigError
from w2v_ray.variables import fill_all, names_variable, plain_value

__all__ = [
    "ENVIRONMENT_NAME",
    "S3_OPTIONS",
    "STORES",
    "STORE_BOUNDS",
    "StoreConfig",
    "StoreLimits",
    "store_config_of",
]

ENVIRONMENT_NAME = "W2V_RAY_STORES"
"""The environment variable with the settings of commands without a job file, and of worker processes."""

STORES = ("s3", "gs", "az", "hf", "http", "memory")
"""The names under which stores are set up."""

# What is written down travels to every worker, and into job files that are shared.
_SECRET = re.compile(
    r"key([_-]?id)?$|secret|token|password|passwd|credential|authorization|cookie|(^|[_-])sas([_-]|$)|"
    r"connection[_-]?string|(^|[_-])auth$",
    re.IGNORECASE,
)
_SECRET_IN_URL = re.compile(r"^[a-z0-9+.-]+://([^/@]*@|.*[?&](x-[a-z]+-)?sig(nature)?=)", re.IGNORECASE)
STORE_BOUNDS: dict[str, tuple[float, float]] = {
    "max_requests": (1, 1024),
    "attempts": (1, 20),
    "connect_timeout_s": (0.1, 600),
    "read_timeout_s": (0.1, 3600),
    "deadline_s": (0.1, 86_400),
}
"""By limit of a store, the bounds of its value."""

S3_OPTIONS = (
    "anon",
    "cache_regions",
    "client_kwargs",
    "config_kwargs",
    "default_block_size",
    "default_cache_type",
    "default_fill_cache",
    "endpoint_url",
    "fixed_upload_size",
    "max_concurrency",
    "profile",
    "requester_pays",
    "s3_additional_kwargs",
    "use_ssl",
    "version_aware",
)
"""What s3fs takes, without what would be a secret and what only a program can give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """What one process asks of one store."""

    max_requests: int = 32
    """Requests in flight at once (1 to 1024)."""
    attempts: int = 5
    """Tries of a request that fails for a reason that may pass (1 to 20)."""
    connect_timeout_s: float = 5.0
    """Seconds until a connection that does not come about counts as failed (0.1 to 600)."""
    read_timeout_s: float = 30.0
    """Seconds without a byte until an answer counts as failed (0.1 to 3600)."""
    deadline_s: float = 300.0
    """Seconds for one read or write, all its tries together (0.1 to 86400)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Which stores may be asked, and how.

    Raises:
        ConfigError: A store is unknown, an option looks like a secret, or a limit is out of bounds.
    """

    allow_http: bool = False
    """Whether ``http://`` and ``https://`` addresses are read."""

    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By store: fields of `StoreLimits`, and options of its fsspec file system."""

    def __post_init__(self) -> None:
        for store, options in self.options.items():
            if store not in STORES:
                raise ConfigError(
                    f"stores.{store} is no store that is known, expected one of {', '.join(STORES)}; "
                    f"{_nearest(str(store), STORES)}"
                )
            if not isinstance(options, Mapping):
                raise ConfigError(
                    f"stores.{store} is {options!r}, expected a mapping; write `{store}: {{option: value}}`"
                )
            _check_values(f"stores.{store}", options)
            _check_names(store, options)
            for name, (low, high) in STORE_BOUNDS.items():
                value = options.get(name, low)
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                if isinstance(getattr(StoreLimits(), name), int):
                    is_number &= isinstance(value, int)
                if not is_number or not low <= value <= high:
                    raise ConfigError(
                        f"stores.{store}.{name} is {value!r}, expected {low:g} to {high:g}; "
                        "correct it, or leave it out"
                    )

    def limits(self, store: str) -> StoreLimits:
        """The limits of a store."""
        given = self.options.get(store, {})
        return StoreLimits(**{name: given[name] for name in STORE_BOUNDS if name in given})

    def file_system_options(self, store: str) -> dict[str, Any]:
        """What its fsspec file system is made with."""
        return {
            name: value for name, value in self.options.get(store, {}).items() if name not in STORE_BOUNDS
        }

    def over(self, other: StoreConfig) -> StoreConfig:
        """These settings, and those of ``other`` where these say nothing."""
        names = self.options.keys() | other.options.keys()
        options = {name: {**other.options.get(name, {}), **self.options.get(name, {})} for name in names}
        return StoreConfig(allow_http=self.allow_http or other.allow_http, options=options)

    def environment(self) -> dict[str, str]:
        """The environment variable that tells a worker process of these settings; empty where none is set."""
        if self == StoreConfig():
            return {}
        return {ENVIRONMENT_NAME: json.dumps({"allow_http": self.allow_http, **self.options})}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> StoreConfig:
        """The settings that an environment holds.

        Raises:
            ConfigError: Its variable is not a JSON object of such settings.
        """
        text = environment.get(ENVIRONMENT_NAME, "").strip() or "{}"
        try:
            found = json.loads(text)
        except ValueError as error:
            found = error
        if not isinstance(found, dict):  # the value is not shown: nobody knows what it is
            raise ConfigError(
                f'{ENVIRONMENT_NAME} is not a JSON object; write {{"s3": {{"endpoint_url": "https://HOST"}}}}'
            )
        allow_http = found.pop("allow_http", False)
        if not isinstance(allow_http, bool):
            raise ConfigError(
                f"allow_http in {ENVIRONMENT_NAME} is {allow_http!r}, expected true or false; correct it"
            )
        return cls(allow_http=allow_http, options=found)


def store_config_of(stores: Mapping[str, Any] | None, *, allow_http: bool) -> StoreConfig:
    """The settings of stores that a job has, with what their variables hold.

    Raises:
        ConfigError: As of `StoreConfig`, or a variable is not set.
    """
    options = {}
    for store, given in (stores or {}).items():
        options[store] = fill_all(given, where=f"stores.{store}")
        for name in STORE_BOUNDS.keys() & (given if isinstance(given, Mapping) else {}):
            if names_variable(given[name]):
                options[store][name] = plain_value(options[store][name])
    return StoreConfig(allow_http=allow_http, options=options)


def _check_names(store: str, options: Mapping[str, Any]) -> None:
    """Refuses options that mean nothing; what file systems other than s3fs take is known only near limits."""
    known = [*STORE_BOUNDS, *(S3_OPTIONS if store == "s3" else ())]
    for name in map(str, options):
        if name in known:
            continue
        if store == "s3" or difflib.get_close_matches(name, known, n=1, cutoff=0.8):
            raise ConfigError(f"stores.{store}.{name} is no option that is known; {_nearest(name, known)}")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"the nearest valid key is {near[0]!r}" if near else f"valid keys are {', '.join(known)}"


def _check_values(where: str, value: object) -> None:
    """Refuses what would carry a secret, and what is not plain data."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if _SECRET.search(str(name)) and inner != "anon":  # the word by which gcsfs knows nobody
                raise ConfigError(
                    f"{where}.{name} looks like a secret, which settings never hold; put it into the "
                    "environment, or into a profile of the store's own configuration"
                )
            _check_values(f"{where}.{name}", inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _check_values(f"{where}[{index}]", inner)
    elif isinstance(value, str):
        if _SECRET_IN_URL.match(value):
            raise ConfigError(
                f"{where} is a URL with a user in it or a signature, which settings never hold; "
                "name the host alone"
            )
    elif value is not None and not isinstance(value, bool | int | float):
        raise ConfigError(
            f"{where} is a {type(value).__name__}, expected text, a number or a mapping; correct it"
        )
