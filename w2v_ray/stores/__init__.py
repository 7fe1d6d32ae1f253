"""Everything that touches a store: files are listed, read by range and published whole.

A place is a local path, a ``file://`` URL (percent-encoded, so that a name that is not UTF-8 can be
written), or a URL of a store, with options from the job or the environment. Chained ``::`` URLs are refused,
and web addresses unless they are allowed.
"""

from w2v_ray.stores.listing import FileInfo, exists, info, list_files, list_glob, list_names
from w2v_ray.stores.places import canonical, is_local, join, local_path, place_named_in, refusal
from w2v_ray.stores.publishing import check_place, check_writable, publish, remove
from w2v_ray.stores.ranges import local_head, open_range, read_bytes, read_range
from w2v_ray.stores.requests import explain, in_use, use
from w2v_ray.stores.unfinished import remove_unfinished

__all__ = [
    "FileInfo",
    "canonical",
    "check_place",
    "check_writable",
    "exists",
    "explain",
    "in_use",
    "info",
    "is_local",
    "join",
    "list_files",
    "list_glob",
    "list_names",
    "local_head",
    "local_path",
    "open_range",
    "place_named_in",
    "publish",
    "read_bytes",
    "read_range",
    "refusal",
    "remove",
    "remove_unfinished",
    "use",
]
