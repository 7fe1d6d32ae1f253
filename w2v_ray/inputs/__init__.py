"""What the user named, as a stream of entries: folders, files, lists, tables, tars and datasets.

Nothing is decoded here, and nothing is left out silently: files that are not taken are counted.
"""

from w2v_ray.inputs.entries import Entry
from w2v_ray.inputs.listing import list_inputs

__all__ = ["Entry", "list_inputs"]
