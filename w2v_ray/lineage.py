"""Names of data as OpenLineage has them: a namespace, which is the store, and a name within it."""

from __future__ import annotations

from w2v_ray import stores

__all__ = ["dataset_of"]


def dataset_of(uri: str) -> dict[str, str]:
    """The ``namespace`` and ``name`` of a path or URL; what a web address asks for after ``?`` is left out.

    ``/data/a`` is ``file`` and ``/data/a``, ``s3://bucket/a/b`` is ``s3://bucket`` and ``a/b``.
    """
    if stores.is_local(uri):
        return {"namespace": "file", "name": stores.canonical(uri)}
    protocol, _, rest = stores.canonical(uri).partition("://")
    place, slash, name = rest.partition("/")
    if protocol in ("http", "https"):
        name = slash + name.partition("?")[0]
    return {"namespace": f"{protocol}://{place}", "name": name or "/"}
