"""Checks of places: whether they can be listed, read and written with the credentials that are here."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from w2v_ray import stores
from w2v_ray.doctor.finding import Finding, note, ok, problem, reason_of
from w2v_ray.errors import OutputError
from w2v_ray.store_config import StoreConfig
from w2v_ray.stores.requests import call

__all__ = ["check_caches", "check_place"]

_PROBE = "w2v-ray-doctor-"  # begins the name of what is written and removed
_MAX_KEYS = 100
_LEVELS = 4  # of folders that are looked into for a file to read
_SKEW_S = 300.0  # S3 refuses requests that are 900 s off
_LOW_DISK = 5e9
# A person waits: an answer that does not come is one.
_PATIENCE = {"attempts": 2, "connect_timeout_s": 5, "read_timeout_s": 15, "deadline_s": 40}


def check_place(uri: str, *, write: bool = False) -> Iterator[Finding]:
    """Whether a path or URL can be listed and read, and with ``write`` whether it can be written.

    What is written has a name of its own and is removed; folders that are made for it are, too.
    """
    reason = stores.refusal(uri)
    if reason is not None:
        yield problem("place", f"{uri} {reason}", "name a path or URL that is read here")
        return
    with _impatient():
        protocol = "file" if stores.is_local(uri) else uri.partition("://")[0].lower()
        if protocol == "s3":
            yield _s3_credentials()
            yield from _clock(uri)
        elif protocol == "hf":
            yield _hub_token()
        yield from _read(uri, is_output=write)
        if write:
            yield _written(uri)


def check_caches() -> Iterator[Finding]:
    """Whether checkpoints from the hub and language models can be kept, and the room for them."""
    from huggingface_hub import constants

    from w2v_ray.text.language_model import cache_folder

    for what, folder, variable in (
        ("checkpoints", Path(constants.HF_HUB_CACHE), "HF_HOME"),
        ("language models", cache_folder(), "W2V_RAY_CACHE"),
    ):
        path = folder
        while not path.exists():
            path = path.parent
        free = shutil.disk_usage(path).free
        text = f"{what} in {folder}, {free / 1e9:,.1f} GB free"
        fix = f"set {variable} to a folder with room that can be written"
        if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
            yield problem("cache", f"{text}, which this user cannot write", fix)
        elif free < _LOW_DISK:
            yield note("cache", f"{text}; a large checkpoint has 1 to 4 GB", fix)
        else:
            yield ok("cache", text)


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Asks stores for a short time only."""
    before = stores.in_use()
    names = before.options.keys() | {"s3", "gs", "az", "hf", "http"}
    options = {name: {**before.options.get(name, {}), **_PATIENCE} for name in names}
    stores.use(StoreConfig(allow_http=before.allow_http, options=options))
    try:
        yield
    finally:
        stores.use(before)


def _read(uri: str, *, is_output: bool) -> Iterator[Finding]:
    try:
        found = stores.info(uri)
        if found is None:
            text = f"{uri}: nothing is there"
            if is_output:
                yield ok("place", f"{text} yet")
            else:
                yield problem("place", text, "correct the name; with --write it is taken as an output to be")
            return
        seen = None
        file: stores.FileInfo | None = found
        if found.kind == "folder":
            file, seen = _some_file(uri)
        if file is None or file.kind != "file":
            yield note("place", f"{uri}: listed ({seen}), with no file near the top that could be read")
            return
        size = file.size
        stores.read_range(file.uri, 0, 1 if size else 0)
    except Exception as error:  # each store has its own
        yield _unreadable(uri, error)
        return
    listed = "" if seen is None else f"listed ({seen}) and "
    told = "" if size is None else f" ({size:,} bytes)"
    name = "" if file.uri == stores.canonical(uri) else f" {file.uri.rpartition('/')[2]}"
    yield ok("place", f"{uri}: {listed}read{name}{told}")


def _some_file(folder: str) -> tuple[stores.FileInfo | None, str]:
    """A file below a folder, without listing all of it, and how many names were seen."""
    if folder[:5].lower() in ("s3://", "s3a:/"):
        answer = _s3_listing(folder, _MAX_KEYS)
        keys = [one["Key"] for one in answer.get("Contents", []) if not one["Key"].endswith("/")]
        bucket = folder.partition("://")[2].partition("/")[0]
        seen = f"{len(keys)}{'+' if answer.get('IsTruncated') else ''} files"
        return (stores.info(f"s3://{bucket}/{keys[0]}") if keys else None), seen
    seen = ""
    for _ in range(_LEVELS):
        names = stores.list_names(folder)
        seen = seen or f"{len(names):,} names"
        next_folder = None
        for name in [name for name in names if not name.startswith((".", "_"))][:20]:
            found = stores.info(stores.join(folder, name))
            if found is not None and found.kind == "file":
                return found, seen
            if found is not None and found.kind == "folder" and next_folder is None:
                next_folder = found.uri
        if next_folder is None:
            break
        folder = next_folder
    return None, seen


def _s3_listing(uri: str, max_keys: int) -> Any:
    """The first keys: a folder of millions takes a thousand requests to list as a whole."""
    bucket, _, prefix = uri.partition("://")[2].rstrip("/").partition("/")
    options = {"Bucket": bucket, "MaxKeys": max_keys, "Prefix": f"{prefix}/" if prefix else ""}
    return call("s3", "call_s3", "list_objects_v2", **options)


def _unreadable(uri: str, error: Exception) -> Finding:
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if isinstance(error, PermissionError) or isinstance(cause, PermissionError):
        fix = (
            "let this user read it (chmod, chown), or run as one who may"
            if stores.is_local(uri)
            else "use credentials that may list and read it (on S3 s3:ListBucket and s3:GetObject)"
        )
    elif "Credentials" in type(cause).__name__ or "credentials" in str(cause).lower():
        fix = "give credentials in the environment or a profile, or --stores '{s3: {anon: true}}'"
    elif isinstance(error, FileNotFoundError) or isinstance(cause, FileNotFoundError):
        fix = "correct the name of the bucket or folder"
    else:
        fix = "check the endpoint (AWS_ENDPOINT_URL for S3), the network and the proxy from this machine"
    return problem("place", f"{uri} cannot be read ({stores.explain(cause)})", fix)


def _written(uri: str) -> Finding:
    probe = stores.join(uri, f"{_PROBE}{uuid.uuid4().hex}")
    made = _folders_to_make(uri) if stores.is_local(uri) else []
    try:
        stores.check_place(uri)
        stores.publish(probe, b"w2v_ray", root=uri)
    except OutputError as error:
        _remove_folders(uri, made)
        cause = error.__cause__
        why = stores.explain(cause) if cause else str(error).partition("output ")[2] or str(error)
        fix = (
            "let this user write there, or name a folder that can be written"
            if stores.is_local(uri)
            else "use credentials that may write it (on S3 s3:PutObject), or name another output"
        )
        return problem("place", f"{uri} cannot be written ({why})", fix)
    try:
        stores.remove(probe)
    except OutputError as error:
        why = stores.explain(error.__cause__ or error)
        text = f"{uri}: written, but {probe.rpartition('/')[2]} could not be removed ({why})"
        return note("place", f"{text}; jobs need no right to delete", "remove that file by hand")
    finally:
        _remove_folders(uri, made)
    return ok("place", f"{uri}: written and removed")


def _folders_to_make(uri: str) -> list[str]:
    """Folders that are not there yet, the innermost first, and will be when something is written."""
    path = stores.local_path(uri)
    made = [] if os.path.lexists(os.path.join(path, "_tmp")) else [os.path.join(path, "_tmp")]
    while not os.path.lexists(path):
        made.append(path)
        path = os.path.dirname(path)
    return made


def _remove_folders(uri: str, made: list[str]) -> None:
    for folder in made:
        with contextlib.suppress(OSError):  # somebody else uses it meanwhile
            os.rmdir(folder)


def _s3_credentials() -> Finding:
    from botocore.session import Session

    options: Any = stores.in_use().options.get("s3", {})
    if options.get("anon"):
        return ok("credentials", "none for S3, as anon: true says")
    profile = options.get("profile")
    try:
        found = Session(profile=profile).get_credentials()
    except Exception as error:  # of botocore: a profile that is not there, a file that cannot be parsed
        return problem("credentials", f"of S3: {reason_of(error)}", "correct the profile, or AWS_PROFILE")
    if found is None:
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role"
        return note("credentials", "none were found for S3", fix)
    endpoint = options.get("endpoint_url") or os.environ.get("AWS_ENDPOINT_URL")
    where = f", for {endpoint}" if endpoint else ""
    return ok("credentials", f"for S3 from {found.method}{where}")


def _clock(uri: str) -> Iterator[Finding]:
    """How far this clock is from the store's, where it answers; why it does not is told elsewhere."""
    try:
        answer = _s3_listing(uri, 1)
    except Exception:
        return
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date is None:
        return
    off_s = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    text = f"{abs(off_s):,.0f} s {'ahead of' if off_s > 0 else 'behind'} that of the store"
    if abs(off_s) < _SKEW_S:
        yield ok("clock", text)
    else:
        fix = "set the clock of this machine by NTP (chronyc makestep)"
        yield problem("clock", f"{text}, which refuses what is 900 s off", fix)


def _hub_token() -> Finding:
    from huggingface_hub import get_token

    if get_token() is None:
        return note("credentials", "no token for the hub; public repositories need none", "run hf auth login")
    return ok("credentials", "a token for the hub is there")
