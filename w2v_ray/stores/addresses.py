"""Web addresses: which are never asked, whatever a manifest or a server's redirect says."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from typing import Any
from urllib.parse import urlsplit

__all__ = ["address_refusal", "connected_socket", "host_refusal", "web_refusal"]

# Where clouds tell a machine its credentials, besides the link-local 169.254.0.0/16 and fe80::/10.
_METADATA_HOSTS = {
    "instance-data",
    "instance-data.ec2.internal",
    "metadata",
    "metadata.azure.internal",
    "metadata.goog",
    "metadata.google.internal",
}
_METADATA_ADDRESSES = {
    ipaddress.ip_address(text)
    for text in ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254")
}
# Signed links hold their secret in the query, and addresses are written into plans and tables.
_SIGNATURE = re.compile(r"[?&](X-Amz-Signature|X-Goog-Signature|Signature|sig)=", re.IGNORECASE)


def web_refusal(url: str) -> str | None:
    """Why an ``http(s)`` address may not be named, as the end of a sentence; None where it may be."""
    if (reason := host_refusal(url)) is not None:
        return reason
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        return "holds a user or password, which would be written into plans; take it out"
    if _SIGNATURE.search(url):
        return (
            "is a signed link, which would be written into plans; name the object by its store, as s3://..."
        )
    return None


def host_refusal(url: str) -> str | None:
    """Why an ``http(s)`` address is never asked, also where a server leads there; None where it may be."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        _ = parts.port
    except ValueError:
        return "is not a valid web address; correct it"
    if not host:
        return "is a web address without a host; name one"
    if host.lower() in _METADATA_HOSTS:
        return "leads to a machine's own metadata, which is never read; name another host"
    try:
        return address_refusal(socket.inet_ntoa(socket.inet_aton(host)))  # also 0xa9fe.43518 and the like
    except (OSError, UnicodeEncodeError):
        return address_refusal(host)


def address_refusal(host: str) -> str | None:
    """Why an IP address is never asked; None where it may be, and where ``host`` is none."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    if address.is_link_local or inner.is_link_local or inner in _METADATA_ADDRESSES:
        return "leads to a link-local or metadata address, which is never read; name another host"
    if address.is_multicast or address.is_unspecified:
        return "leads to an address of no single host; name another host"
    return None


def connected_socket(info: tuple[Any, ...]) -> socket.socket:
    """A socket for an address that a name was resolved to, at the last moment before it is connected.

    Raises:
        PermissionError: The address is never asked.
    """
    family, kind, protocol, _, address = info
    if (reason := address_refusal(str(address[0]))) is not None:
        raise PermissionError(errno.EACCES, f"{address[0]} {reason}")
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made
