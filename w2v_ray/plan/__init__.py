"""From inputs to shards: what there is to do, what is done, and what both say in seconds of audio.

A plan is written before any audio is read and is never changed; what is pending is what is planned and not
published. Two runs that plan the same inputs at once end with the same plan.
"""

from w2v_ray.plan.generations import newest_items
from w2v_ray.plan.languages import language_keys, shard_languages
from w2v_ray.plan.planning import Plan, make_plan, plan_entries, plan_of
from w2v_ray.plan.redecoding import make_redecode_plan
from w2v_ray.plan.sampling import make_sample_plan, take_sample
from w2v_ray.plan.status import Status, status

__all__ = [
    "Plan",
    "Status",
    "language_keys",
    "make_plan",
    "make_redecode_plan",
    "make_sample_plan",
    "newest_items",
    "plan_entries",
    "plan_of",
    "shard_languages",
    "status",
    "take_sample",
]
