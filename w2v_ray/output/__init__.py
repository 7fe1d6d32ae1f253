"""What can be done with an output beside running its job: reading it, auditing it, merging its files, and
planning what was rejected again.
"""

from w2v_ray.output.auditing import Audit, Finding, audit
from w2v_ray.output.compacting import Compaction, compact
from w2v_ray.output.languages import SpokenLanguages, spoken_languages_fingerprint
from w2v_ray.output.leftovers import remove_leftovers
from w2v_ray.output.retrying import make_retry_plan
from w2v_ray.output.rows import Unit, current_rows, reading_units, row_schema

__all__ = [
    "Audit",
    "Compaction",
    "Finding",
    "SpokenLanguages",
    "Unit",
    "audit",
    "compact",
    "current_rows",
    "make_retry_plan",
    "reading_units",
    "remove_leftovers",
    "row_schema",
    "spoken_languages_fingerprint",
]
