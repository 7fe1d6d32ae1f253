"""What is counted of stages and batches, and that every metric has one name, one table and one panel."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from w2v_ray import ConfigError, telemetry
from w2v_ray.lineage import dataset_of
from w2v_ray.metering import BatchMeter, MeteredStage
from w2v_ray.metric_names import METRICS, SCRAPED_PREFIX
from w2v_ray.progress import Meter, Progress, Tally
from w2v_ray.quality import CONFIDENCE_EDGES, SECONDS_EDGES, Quality, describe
from w2v_ray.schema import ERROR

ROOT = Path(__file__).resolve().parents[1]
DASHBOARD = json.loads((ROOT / "pipelines" / "grafana.json").read_text(encoding="utf-8"))
OLD = {"stage": "read_audio", "error_class": "ReadError", "message": "gone"}
NEW = {"stage": "decode_audio", "error_class": "DecodeError", "message": "no audio"}


def items(*errors: dict[str, str] | None, **columns: list[object]) -> pa.Table:
    return pa.table({"error": pa.array(errors, ERROR), **columns})


def test_a_stage_tells_once_a_shard_what_it_did() -> None:
    told: list[Tally] = []
    after = items(OLD, NEW, None, duration_s=[None, None, 2.5], audio_bytes=[None, b"abc", b"de"])
    stage = MeteredStage(lambda table: after, name="decode_audio", send=told.append)
    before = items(OLD, None, None, planned_s=[1.0, 2.0, 3.0])
    assert stage(before) is after
    assert stage.__name__ == "decode_audio"  # what Ray shows
    (tally,) = told
    assert (tally.stage, tally.shards, tally.items, tally.audio_s, tally.num_bytes) == (
        "decode_audio",
        1,
        3,
        2.5,
        5,
    )
    assert tally.errors == {("decode_audio", "DecodeError"): 1}  # the old one is not this stage's
    assert tally.busy_s > 0


def test_what_reading_gives_is_counted_as_planned() -> None:
    told: list[Tally] = []
    stage = MeteredStage(lambda table: table, name="read_audio", send=told.append)
    stage(pa.table({"planned_s": [1.0, 2.0]}))
    assert (told[0].audio_s, told[0].errors) == (3.0, {})


def test_a_stage_that_fails_tells_nothing() -> None:
    told: list[Tally] = []

    def fail(table: pa.Table) -> pa.Table:
        raise ValueError

    with pytest.raises(ValueError):
        MeteredStage(fail, name="read_audio", send=told.append)(pa.table({"planned_s": [1.0]}))
    assert told == []


class Encoder:
    """What the meter sees of one."""

    def __init__(self) -> None:
        self.stats = {"batches": 0, "padded_s": 0.0, "audio_s": 0.0}

    def encode(self, *, audio_s: float, computed_s: float) -> None:
        self.stats["batches"] += 1
        self.stats["padded_s"] += computed_s - audio_s
        self.stats["audio_s"] += audio_s


def test_batches_are_told_of_twice_a_second_and_at_the_end_of_a_shard() -> None:
    told: list[Tally] = []
    now = [100.0]
    encoder, meter = Encoder(), BatchMeter(worker="w", send=told.append, clock=lambda: now[0])
    meter.watch(encoder)
    meter.begin()
    for seconds in (0.25, 0.5):
        now[0] += seconds
        encoder.encode(audio_s=6.0, computed_s=8.0)
        meter.batch(6.0)
    now[0] += 0.125
    encoder.encode(audio_s=4.0, computed_s=4.0)
    meter.batch(4.0)
    meter.end()
    assert [tally.audio_s for tally in told] == [12.0, 4.0]
    assert [tally.batches for tally in told] == [2, 1]
    assert [tally.busy_s for tally in told] == [0.75, 0.125]
    assert [tally.padding_s for tally in told] == [4.0, 0.0]
    assert [tally.fills for tally in told] == [(0.75, 0.75), (1.0,)]
    assert {tally.worker for tally in told} == {"w"}
    now[0] += 50  # waiting for the next shard is not work
    meter.begin()
    now[0] += 1
    meter.end()
    assert told[-1].busy_s == 1.0
    assert told[-1].fills == ()


def test_an_encoder_that_says_nothing_of_padding_has_none_that_is_known() -> None:
    told: list[Tally] = []
    meter = BatchMeter(worker="w", send=told.append)
    meter.watch(object())
    meter.begin()
    meter.batch(3.0)
    meter.end()
    assert [(t.audio_s, t.batches, t.padding_s, t.fills) for t in told] == [(3.0, 1, None, ())]


class Shown:
    """An exporter that remembers."""

    def __init__(self) -> None:
        self.counted: list[Tally] = []
        self.gauges: list[Mapping[str, float]] = []
        self.queue: Mapping[str, int] = {}

    def count(self, tally: Tally) -> None:
        self.counted.append(tally)

    def show(self, gauges: Mapping[str, float], queue: Mapping[str, int]) -> None:
        self.gauges.append(gauges)
        self.queue = queue


def test_the_meter_shows_how_busy_encoders_were_since_it_was_last_asked() -> None:
    now, shown = [0.0], Shown()
    meter = Meter(lambda: shown, clock=lambda: now[0])
    progress = Progress(
        planned_s=100.0,
        before_s=10.0,
        done_s=5.0,
        num_shards=3,
        num_shards_done=1,
        num_rejects=0,
        elapsed_s=7.0,
        queue={"encode": 2},
    )
    now[0] = 10.0
    meter.show(progress)
    assert "w2v_ray_device_busy_ratio" not in shown.gauges[-1]  # no encoder is known
    for worker, busy_s in (("a", 4.0), ("b", 1.0)):
        meter.add(Tally(stage="encode", worker=worker, busy_s=busy_s))
    now[0] = 20.0
    meter.show(progress)
    assert shown.gauges[-1]["w2v_ray_device_busy_ratio"] == 5.0 / (10.0 * 2)
    assert shown.gauges[-1]["w2v_ray_done_audio_seconds"] == 15.0
    assert shown.queue == {"encode": 2}
    now[0] = 21.0
    meter.add(Tally(stage="encode", worker="a", busy_s=9.0))  # of a batch that began before
    meter.show(progress)
    assert shown.gauges[-1]["w2v_ray_device_busy_ratio"] == 1.0
    assert len(shown.counted) == 3


def test_names_of_metrics_follow_prometheus() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"w2v_ray_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert (metric.bounds != ()) == (metric.kind == "histogram")
        if metric.unit == "s":
            assert "_seconds" in metric.name
        if metric.unit in ("bytes", "rows", "shards", "frames", "batches") and metric.kind == "counter":
            noun = metric.name.removeprefix("w2v_ray_").removesuffix("_total")
            assert noun in (metric.unit, "items", "rejects", "errors")


def expressions(dashboard: dict[str, object]) -> list[str]:
    panels = dashboard["panels"]
    assert isinstance(panels, list)
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_the_dashboard_shows_every_metric_and_nothing_else() -> None:
    shown = set(re.findall(rf"{SCRAPED_PREFIX}w2v_ray_\w+", " ".join(expressions(DASHBOARD))))
    shown = {re.sub(r"_ratio_(bucket|count|sum)$", "_ratio", name) for name in shown}
    assert shown == {SCRAPED_PREFIX + metric.name for metric in METRICS}


def test_the_dashboard_can_be_imported() -> None:
    assert DASHBOARD["schemaVersion"] >= 38
    assert DASHBOARD["uid"]
    assert {"type": "datasource", "name": "DS_PROMETHEUS"}.items() <= DASHBOARD["__inputs"][0].items()
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert names == {"run"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken  # no panel covers another
        taken |= cells
        assert place["x"] + place["w"] <= 24
        assert panel["datasource"] == {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
        assert panel["title"]
    labels = {metric.name: {"run", "le", *metric.labels} for metric in METRICS}
    for expression in expressions(DASHBOARD):
        assert expression.count("(") == expression.count(")")
        for name, selector in re.findall(r"ray_(w2v_ray_\w+)\{([^}]*)\}", expression):
            name = re.sub(r"_ratio_(bucket|count|sum)$", "_ratio", name)
            assert set(re.findall(r'(\w+)=~?"', selector)) <= labels[name]
            assert 'run=~"$run"' in selector
        for group in re.findall(r"by \(([^)]*)\)", expression):
            assert {label.strip() for label in group.split(",")} <= {"stage", "reason", "run", "le"}


def test_measuring_is_on_unless_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("W2V_RAY_TELEMETRY", raising=False)
    assert telemetry.is_on()
    monkeypatch.setenv("W2V_RAY_TELEMETRY", "off")
    assert not telemetry.is_on()
    monkeypatch.setenv("W2V_RAY_TELEMETRY", "no")
    with pytest.raises(ConfigError, match="W2V_RAY_TELEMETRY is 'no', expected on or off"):
        telemetry.is_on()


def test_what_shards_are_like_adds_up() -> None:
    def rows(*values: tuple[float, float | None, int]) -> pa.Table:
        seconds, sure, words = zip(*values, strict=True)
        return pa.table(
            {
                "duration_s": pa.array(seconds, pa.float64()),
                "confidence": pa.array(sure, pa.float32()),
                "words": [["w"] * count for count in words],
                "speech_ratio": pa.array([0.5] * len(values), pa.float32()),
            }
        )

    quality = Quality()
    assert quality.to_dict() == {"confidence": None, "speech_rate_wps": None, "segment_s": None}
    quality.add({})  # of a shard that an earlier version wrote
    quality.add(describe(rows((10.0, 0.5, 10), (20.0, 1.0, 30), (400.0, None, 0))))
    quality.add(describe(rows(*((10.0, 0.5, 10) for _ in range(97)))))
    found = quality.to_dict()
    assert found["speech_rate_wps"] == pytest.approx((97 * 10 + 40) / (0.5 * (97 * 10 + 430)))
    assert found["confidence"]["mean"] == pytest.approx((98 * 0.5 + 1.0) / 99)
    for name in ("p10", "p50", "p90"):
        assert 0.45 <= found["confidence"][name] <= 0.5
    assert 8 <= found["segment_s"]["p50"] <= 10
    longest = Quality()
    longest.add(describe(rows((400.0, 0.0, 1))))
    assert longest.to_dict()["segment_s"]["p50"] == SECONDS_EDGES[-1]  # as far as bins reach
    assert 0 <= longest.to_dict()["confidence"]["p50"] <= CONFIDENCE_EDGES[0]


def test_percentiles_are_within_a_bin_of_the_true_ones() -> None:
    import numpy as np

    sure = np.random.default_rng(4).beta(6, 2, 5000).astype(np.float32)
    table = pa.table({"duration_s": np.full(5000, 3.0), "score": sure})
    quality = Quality()
    for begin in range(0, 5000, 500):
        quality.add(describe(table.slice(begin, 500)))
    found = quality.to_dict()["confidence"]
    for percent in (10, 50, 90):
        assert found[f"p{percent}"] == pytest.approx(np.percentile(sure, percent), abs=0.02)
    assert found["mean"] == pytest.approx(float(sure.mean()), abs=1e-4)


@pytest.mark.parametrize(
    ("uri", "namespace", "name"),
    [
        ("/data/a.wav", "file", "/data/a.wav"),
        ("file:///data/a.wav", "file", "/data/a.wav"),
        ("s3://bucket/a/b.tar", "s3://bucket", "a/b.tar"),
        ("s3a://bucket/a/", "s3://bucket", "a"),
        ("gs://bucket", "gs://bucket", "/"),
        ("https://host/list.txt?token=secret", "https://host", "/list.txt"),
    ],
)
def test_data_has_the_names_of_openlineage(uri: str, namespace: str, name: str) -> None:
    assert dataset_of(uri) == {"namespace": namespace, "name": name}
