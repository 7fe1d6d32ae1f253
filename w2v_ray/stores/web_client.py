"""The client for web addresses: what it connects to is looked at after names are resolved."""

from __future__ import annotations

from typing import Any

from w2v_ray.stores.addresses import connected_socket

__all__ = ["web_client"]


async def web_client(
    *, connect_timeout_s: float, read_timeout_s: float, max_requests: int, loop: Any, **options: Any
) -> Any:
    """An aiohttp session as fsspec's HTTPFileSystem asks for one."""
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(socket_factory=connected_socket, limit=max_requests),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s, sock_read=read_timeout_s),
        auto_decompress=False,  # bytes are counted as they are stored
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=True,  # proxies
        **options,
    )
