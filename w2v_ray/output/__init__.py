"""What can be done with an output beside adding to it: reading the rows that count."""

from w2v_ray.output.rows import current_rows, row_schema

__all__ = ["current_rows", "row_schema"]
