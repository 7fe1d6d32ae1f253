"""What can be done with an output beside adding to it: reading the rows that count, and auditing it."""

from w2v_ray.output.audit import Audit, Finding, audit
from w2v_ray.output.leftovers import remove_leftovers
from w2v_ray.output.rows import current_rows, row_schema

__all__ = ["Audit", "Finding", "audit", "current_rows", "remove_leftovers", "row_schema"]
