"""Fetching bytes: one request each, whose answer tells of which file, size and version they are.

S3 and web servers say so in their headers, and what does not fit is given up before the body is read. Other
stores give the bytes alone.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from w2v_ray.stores.addresses import host_refusal, web_refusal
from w2v_ray.stores.requests import call, run

__all__ = ["Answer", "Check", "fetch", "web_info"]

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_MD5 = re.compile(r"[0-9a-f]{32}")
_MAX_REDIRECTS = 5

# Of buckets: whether their etags of this form have been seen to be the MD5 of the content, and not to be.
_etags_are_md5: dict[str, bool] = {}
_etags_lock = threading.Lock()


class Answer(NamedTuple):
    """What a store says about a file besides its bytes."""

    size: int | None
    """Bytes of the whole file; None: it does not say."""
    version: str | None
    """As of `FileInfo`; None: it does not say."""


Check = Callable[[Answer], None]
"""Called before a body is read; it raises where that is not worth it."""


def fetch(protocol: str, path: str, start: int | None, end: int | None, *, check: Check) -> bytes:
    """Bytes ``[start, end)`` of a file, fewer where it ends before; None and None: all of it.

    Raises:
        Exception: What ``check`` raises, and what stores do.
    """
    if start is not None and start == end:
        return b""
    if protocol == "s3":
        return _Object(path, start, end, check).fetched()
    if protocol == "http":
        return run(protocol, lambda store: _web_body(store, path, start, end, check))
    return bytes(call(protocol, "cat_file", path, start=start, end=end))


class _Object:
    """A request for an S3 object, or a part of one."""

    def __init__(self, path: str, start: int | None, end: int | None, check: Check) -> None:
        self._path, self._start, self._end, self._check = path, start, end, check
        self._digest_before = ""

    def fetched(self) -> bytes:
        return run("s3", self._attempt)

    async def _attempt(self, store: Any) -> bytes:
        bucket, key, version_id = store.split_path(self._path)
        options = {"VersionId": version_id} if version_id else {}
        if self._start is not None:
            options["Range"] = f"bytes={self._start}-{'' if self._end is None else self._end - 1}"
        response = await store._call_s3("get_object", Bucket=bucket, Key=key, **options)
        body = response["Body"]
        try:
            etag = (response.get("ETag") or "").strip('"')
            length, size = _lengths(
                response.get("ContentRange"), response.get("ContentLength"), self._start, self._end
            )
            self._check(Answer(size, f"etag:{etag}" if etag else None))
            data = bytes(await body.read())
        finally:
            body.close()
        _check_length(data, length)
        is_sealed = "SSECustomerAlgorithm" in response or "SSEKMSKeyId" in response
        if self._start is None and not is_sealed:
            self._check_content(bucket, etag, data)
        return data

    def _check_content(self, bucket: str, etag: str, data: bytes) -> None:
        """Compares the whole content with its etag, which for most objects of most stores is its MD5.

        Two answers that agree with each other and not with the etag mean that it is something else, unless
        it was an MD5 for other objects of the bucket.
        """
        with _etags_lock:
            are_md5 = _etags_are_md5.get(bucket)
        if are_md5 is False or not _MD5.fullmatch(etag):
            return
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        is_md5 = digest == etag
        if is_md5 or (are_md5 is None and digest == self._digest_before):
            with _etags_lock:
                _etags_are_md5.setdefault(bucket, is_md5)
            return
        self._digest_before = digest
        raise ConnectionError(f"the bytes are not those of its etag {etag}: their MD5 is {digest}")


async def _web_body(store: Any, url: str, start: int | None, end: int | None, check: Check) -> bytes:
    response, length, answer = await _web_response(store, url, start, end)
    async with response:
        check(answer)
        if start == 0 and end is not None and length is not None and length > end:
            length = end  # the server gives the whole file where a part was asked for
            try:
                return bytes(await response.content.readexactly(end))
            finally:
                response.close()
        data = bytes(await response.read())
    _check_length(data, length)
    return data


async def web_info(store: Any, url: str) -> Answer:
    """Size and version of a file on the web, by asking for its first byte.

    Raises:
        FileNotFoundError: There is none.
    """
    response, _, answer = await _web_response(store, url, 0, 1)
    response.close()
    return answer


async def _web_response(
    store: Any, url: str, start: int | None, end: int | None
) -> tuple[Any, int | None, Answer]:
    """An answer whose body is still to be read, the length of that, and what it says of the file."""
    session = await store.set_session()
    headers = {"Accept-Encoding": "identity"}
    if start is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    for number in range(_MAX_REDIRECTS + 1):
        # Where a server leads may hold a signature: it is used, and neither written nor said.
        if (reason := host_refusal(url) if number else web_refusal(url)) is not None:
            raise PermissionError(f"{urlsplit(url).hostname or 'it'} {reason}")
        response = await session.get(store.encode_url(url), headers=headers, allow_redirects=False)
        try:
            if response.status in (301, 302, 303, 307, 308) and "Location" in response.headers:
                url = urljoin(url, response.headers["Location"])
                response.close()
                if not url.lower().startswith(("http://", "https://")):
                    raise PermissionError("it redirects to what is no web address")
                continue
            if response.status in (404, 410):
                raise FileNotFoundError(url)
            if response.status in (401, 403):
                raise PermissionError(f"the server answers {response.status}")
            if response.status == 416:
                size = _lengths(response.headers.get("Content-Range"), None, None, None)[1]
                return response, 0, Answer(size, _web_version(response.headers))
            response.raise_for_status()
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise OSError("the server encodes the bytes, so that they cannot be counted")
            content_range = response.headers.get("Content-Range") if response.status == 206 else None
            length, size = _lengths(content_range, response.content_length, start, end)
            return response, length, Answer(size, _web_version(response.headers))
        except BaseException:
            response.close()
            raise
    raise PermissionError(f"it redirects more than {_MAX_REDIRECTS} times")


def _web_version(headers: Any) -> str | None:
    etag, changed = headers.get("ETag"), headers.get("Last-Modified")
    return "etag:" + etag.strip('"') if etag else f"mtime:{changed}" if changed else None


def _lengths(
    content_range: str | None, content_length: int | None, start: int | None, end: int | None
) -> tuple[int | None, int | None]:
    """The length of the body and that of the whole file, as the headers of an answer say.

    Raises:
        OSError: It is not the range that was asked for.
    """
    if content_range is None:
        if start:
            raise OSError("its server gives no parts of files; copy it to a disk or another store")
        return content_length, content_length
    match = _CONTENT_RANGE.fullmatch(content_range.strip())
    if match is None:
        raise ConnectionError(f"the server answers with the range {content_range[:40]!r}")
    first, last, total = match.groups()
    size = None if total == "*" else int(total)
    if first is None:
        return content_length, size
    wanted_last = int(last) if end is None else end - 1
    if int(first) != (start or 0) or int(last) > wanted_last:
        raise ConnectionError(f"the server answers with the range {content_range[:40]!r}, which is another")
    return int(last) - int(first) + 1, size


def _check_length(data: bytes, length: int | None) -> None:
    if length is not None and len(data) != length:
        raise ConnectionError(f"the body ended after {len(data)} of {length} bytes")
