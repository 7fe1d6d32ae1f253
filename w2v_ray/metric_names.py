"""Every metric of a run: its name, kind, labels, unit and meaning. Nothing else is exported.

Ray puts ``ray_`` before the names of metrics that are not its own, so that is how they are scraped.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["METRICS", "SCRAPED_PREFIX", "Metric"]

SCRAPED_PREFIX = "ray_"


class Metric(NamedTuple):
    """One metric. Each has the label ``run`` besides its own."""

    name: str
    kind: str
    """``counter``, ``gauge`` or ``histogram``."""
    labels: tuple[str, ...]
    unit: str
    meaning: str
    bounds: tuple[float, ...] = ()
    """Of a histogram: the upper ends of its buckets."""


_FILLS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)

METRICS = (
    Metric("w2v_ray_audio_seconds_total", "counter", ("stage",), "s", "audio that a stage has done"),
    Metric(
        "w2v_ray_busy_seconds_total", "counter", ("stage",), "s", "time in which its workers had work in hand"
    ),
    Metric("w2v_ray_items_total", "counter", ("stage",), "rows", "recordings or segments it was given"),
    Metric("w2v_ray_shards_total", "counter", ("stage",), "shards", "shards it has done"),
    Metric(
        "w2v_ray_bytes_total", "counter", ("stage",), "bytes", "read by `read_audio`, put by `write_parquet`"
    ),
    Metric("w2v_ray_rows_total", "counter", (), "rows", "rows published in the table of the job's task"),
    Metric("w2v_ray_rejects_total", "counter", (), "rows", "rows published in `rejects/`"),
    Metric(
        "w2v_ray_errors_total",
        "counter",
        ("stage", "reason"),
        "rows",
        "items and segments that failed, by stage and class of error, as soon as they do",
    ),
    Metric("w2v_ray_frames_total", "counter", ("stage",), "frames", "of emissions that were decoded"),
    Metric("w2v_ray_batches_total", "counter", (), "batches", "of the encoder"),
    Metric("w2v_ray_padding_seconds_total", "counter", (), "s", "what batches were padded with"),
    Metric(
        "w2v_ray_batch_fill_ratio", "histogram", (), "", "of a batch, the share that is audio", bounds=_FILLS
    ),
    Metric(
        "w2v_ray_device_busy_ratio",
        "gauge",
        (),
        "",
        "share of the last seconds in which encoders had a shard in hand; 1: all of them, always",
    ),
    Metric(
        "w2v_ray_queue_shards",
        "gauge",
        ("stage",),
        "shards",
        "done by the stage before, not begun here",
    ),
    Metric("w2v_ray_planned_audio_seconds", "gauge", (), "s", "all audio of the plan"),
    Metric("w2v_ray_done_audio_seconds", "gauge", (), "s", "what is done of it, by earlier runs as well"),
    Metric("w2v_ray_elapsed_seconds", "gauge", (), "s", "time since the run began"),
)
