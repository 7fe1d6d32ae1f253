from __future__ import annotations

import json
import os
import pickle
import shutil
import tarfile
import wave
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.made_outputs import silence, write_archive
from w2v_ray import stores
from w2v_ray.errors import InputError, OutputError
from w2v_ray.plan import Plan, make_plan, make_redecode_plan, records, status
from w2v_ray.plan.shards import group, time_ranges
from w2v_ray.schema import ITEM, TRANSCRIPT
from w2v_ray.stages.write_parquet import WriteParquet, WriteParquetConfig

JOB = {"model": "m", "dtype": "float32", "revision": None, "shard_seconds": 100.0}


def write_wav(path: Path, seconds: float) -> Path:
    """Silence of 8 bits at 8 kHz, which takes no space on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        file.setnframes(round(seconds * 8000))
        file.writeframesraw(b"")
        file._nframeswritten = round(seconds * 8000)  # type: ignore[attr-defined]
        file._datawritten = round(seconds * 8000)  # type: ignore[attr-defined]
        file._patchheader()  # type: ignore[attr-defined]
    os.truncate(path, 44 + round(seconds * 8000))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Ten recordings of 10 to 100 seconds."""
    for number in range(1, 11):
        write_wav(tmp_path / "archive" / f"{number:02}.wav", number * 10)
    return tmp_path / "archive"


def plan(inputs: Path | str | list[str], output: Path | str, **changes: Any) -> Plan:
    texts = inputs if isinstance(inputs, list) else [str(inputs)]
    return make_plan(texts, str(output), shard_seconds=100, job=JOB | changes)


def publish(planned: Plan, shard_id: str, *, num_rejects: int = 0) -> None:
    """Publishes a shard as the pipeline would: a row per item, and rejects for the first of them."""
    (items,) = planned.shard_tables([shard_id])
    rows = items.to_pylist()
    error = {"stage": "decode_audio", "error_class": "DecodeError", "message": "no"}
    for index, row in enumerate(rows):
        row |= {"duration_s": row["planned_s"], "segment_index": 0, "segment_id": f"{row['recording_id']}@0"}
        row["error"] = error if index < num_rejects else None
    columns = [*TRANSCRIPT, *(ITEM.field(name) for name in ("byte_size", "planned_s", "generation"))]
    error_field = pa.field("error", pa.struct({name: pa.string() for name in error}))
    table = pa.Table.from_pylist(rows, pa.schema([*columns, error_field]))
    WriteParquet(WriteParquetConfig(output=planned.output, job_fingerprint=planned.job_fingerprint))(table)


# ---- shards and ranges


@given(st.data())
@settings(deadline=None)
def test_shards_hold_every_item_once_and_no_more_than_they_may(data: st.DataObject) -> None:
    shard_seconds = data.draw(st.floats(10, 200))
    items = data.draw(st.lists(st.tuples(st.floats(0, 300), st.integers(0, 300 << 20)), max_size=60))
    seconds, sizes = [item[0] for item in items], [item[1] for item in items]
    ends = group(seconds, sizes, shard_seconds)
    assert ends == sorted(set(ends))
    assert (ends[-1] if ends else 0) == len(items)
    for begin, end in zip([0, *ends], ends, strict=False):
        assert end - begin == 1 or sum(seconds[begin:end]) <= shard_seconds
        assert end - begin == 1 or sum(sizes[begin:end]) <= 512 << 20
        if end < len(items):  # nothing more would have fitted
            fits = sum(seconds[begin : end + 1]) <= shard_seconds * (1 - 1e-9)
            assert not (fits and sum(sizes[begin : end + 1]) <= 512 << 20)


def test_shards_of_very_short_items_are_bounded() -> None:
    assert group([0.0] * 10_000, [0] * 10_000, 100) == [4096, 8192, 10_000]


@given(
    start_s=st.none() | st.floats(0, 1e5),
    duration_s=st.floats(0, 1e5),
    shard_seconds=st.floats(10, 7200),
    is_open=st.booleans(),
)
@settings(deadline=None)  # a busy machine is no failure
def test_time_ranges_leave_no_gap(
    start_s: float | None, duration_s: float, shard_seconds: float, is_open: bool
) -> None:
    end_s = None if is_open else (start_s or 0) + duration_s
    ranges = time_ranges(start_s, end_s, duration_s, shard_seconds)
    assert (ranges[0][0], ranges[-1][1]) == (start_s, end_s)
    assert all(one[1] == other[0] is not None for one, other in pairwise(ranges))
    assert sum(length for _, _, length in ranges) == pytest.approx(duration_s)
    step = min(max(shard_seconds, 60), 3600)
    for number, (begin, end, length) in enumerate(ranges):
        assert length <= step * 1.5
        if len(ranges) > 1:
            assert length >= step / 3 * (1 - 1e-9)
            assert begin is None or begin == pytest.approx((start_s or 0) + number * step)
            assert end is None or end == pytest.approx((begin or 0) + length)


def test_a_plan_is_the_same_wherever_it_is_made(archive: Path, tmp_path: Path) -> None:
    one, other = plan(archive, tmp_path / "one"), plan(archive, tmp_path / "other")
    assert one.items.equals(other.items)
    assert (tmp_path / "one/_plan/plan-00001.parquet").read_bytes() == (
        tmp_path / "other/_plan/plan-00001.parquet"
    ).read_bytes()


# ---- what a plan says


def test_a_plan_holds_every_recording(archive: Path, tmp_path: Path) -> None:
    (archive / "notes.txt").write_text("x")
    planned = plan(archive, tmp_path / "out")
    items = planned.items
    assert items.schema == ITEM
    assert items["uri"].to_pylist() == [str(path) for path in sorted(archive.glob("*.wav"))]
    assert items["planned_s"].to_pylist() == [number * 10 for number in range(1, 11)]
    assert items["recording_id"] == items["uri"]
    for row in items.to_pylist():
        file = stores.info(row["uri"])
        assert file is not None
        assert (row["byte_size"], row["version"]) == (file.size, file.version)
        assert row["byte_offset"] is row["start_s"] is row["end_s"] is row["metadata"] is None
        assert row["start_is_cut"] is row["end_is_cut"] is False
        assert len(row["fingerprint"]) == 24
    tables = list(planned.shard_tables())
    assert [table["planned_s"].to_pylist() for table in tables] == [
        [10, 20, 30, 40],
        [50],
        [60],
        [70],
        [80],
        [90],
        [100],
    ]
    assert pa.concat_tables(tables).equals(items)
    for table in tables:
        assert table["item_index"].to_pylist() == list(range(table.num_rows))
        assert len(set(table["shard_id"].to_pylist())) == 1
        assert len(table["shard_id"][0].as_py()) == 20
    assert (planned.num_items, planned.num_shards, planned.num_new) == (10, 7, 10)
    assert (planned.planned_s, planned.pending_s, planned.num_pending) == (550, 550, 7)
    assert (planned.num_duplicates, planned.skipped) == (0, {".txt files": 1})
    record = json.loads((tmp_path / "out/_plan/job.json").read_text())
    assert record["job"] == JOB
    assert record["job_fingerprint"] == planned.job_fingerprint


def test_a_shard_travels_alone(tmp_path: Path) -> None:
    objects = [{"audio_filepath": "a.wav", "offset": i, "duration": 1} for i in range(3000)]
    write_wav(tmp_path / "a.wav", 10)
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, objects)))
    planned = plan(tmp_path / "m.jsonl", tmp_path / "out")
    whole = len(pickle.dumps(planned.items))
    assert max(len(pickle.dumps(table)) for table in planned.shard_tables()) < whole / 10


def test_durations_come_from_manifests_headers_and_sizes(tmp_path: Path) -> None:
    write_wav(tmp_path / "real.wav", 12)
    (tmp_path / "broken.mp3").write_bytes(b"no audio" * 10_000)
    (tmp_path / "huge.mp3").write_bytes(b"no audio" * 1_000_000)
    objects = [
        {"audio_filepath": "real.wav"},
        {"audio_filepath": "real.wav", "duration": 11.5, "id": "said"},
        {"audio_filepath": "real.wav", "offset": 4, "id": "rest"},
        {"audio_filepath": "real.wav", "offset": 4, "duration": 3, "id": "part"},
        {"audio_filepath": "real.wav", "duration": 5000, "id": "wrong"},
        {"audio_filepath": "broken.mp3"},
        {"audio_filepath": "huge.mp3"},
        {"audio_filepath": "missing.mp3"},
        {"audio_filepath": "missing.wav", "duration": 9},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, objects)))
    planned = plan(tmp_path / "m.jsonl", tmp_path / "out")
    assert planned.items["planned_s"].to_pylist() == [12, 11.5, 8, 3, 12, 10, 100, 0, 9]


def test_real_recordings_are_planned_with_their_length(shared_data: Path, tmp_path: Path) -> None:
    planned = plan(shared_data / "misc" / "derived", tmp_path / "out")
    assert planned.num_items == 21
    lengths = planned.items["planned_s"].to_pylist()
    assert max(lengths) - min(lengths) < 0.15
    assert plan(shared_data / "misc", tmp_path / "all").num_items > 70  # broken files are planned, too


def test_long_recordings_become_time_ranges(tmp_path: Path) -> None:
    write_wav(tmp_path / "archive" / "long.wav", 430)
    write_wav(tmp_path / "archive" / "short.wav", 150)
    planned = plan(tmp_path / "archive", tmp_path / "out")
    columns = ["start_s", "end_s", "start_is_cut", "end_is_cut", "planned_s"]
    assert [tuple(row.values()) for row in planned.items.select(columns).to_pylist()] == [
        (None, 100, False, True, 100),
        (100, 200, True, True, 100),
        (200, 300, True, True, 100),
        (300, None, True, False, 130),
        (None, None, False, False, 150),
    ]
    assert len(set(planned.items["fingerprint"].to_pylist())) == 5
    assert len(set(planned.items["recording_id"].to_pylist())) == 2
    assert planned.num_shards == 5
    again = plan(tmp_path / "archive", tmp_path / "out")
    assert (again.num_new, again.num_items) == (0, 5)


def test_long_ranges_of_manifests_are_cut_inside_only(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 1000)
    objects = [{"offset": 50, "duration": 250}, {"offset": 800}]
    objects = [{"audio_filepath": "a.wav", **times} for times in objects]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, objects)))
    rows = plan(tmp_path / "m.jsonl", tmp_path / "out").items.to_pylist()
    assert [(row["start_s"], row["end_s"], row["planned_s"]) for row in rows] == [
        (50, 150, 100),
        (150, 250, 100),
        (250, 300, 50),
        (800, 900, 100),
        (900, None, 100),
    ]
    assert [row["end_is_cut"] for row in rows] == [True, True, False, True, False]


def test_a_header_that_only_estimates_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from w2v_ray.audio import codecs

    write_wav(tmp_path / "a.wav", 260)
    real = codecs.probe

    def estimate(file: Any) -> codecs.AudioInfo:
        header = real(file)
        return codecs.AudioInfo(
            duration_s=1e6,
            duration_is_exact=False,
            sample_rate_hz=header.sample_rate_hz,
            num_channels=header.num_channels,
            codec=header.codec,
        )

    monkeypatch.setattr(codecs, "probe", estimate)
    planned = plan(tmp_path / "a.wav", tmp_path / "out")
    assert planned.items["planned_s"].to_pylist() == [100, 100, 60]


# ---- running again


def test_running_again_plans_only_what_is_new(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = plan(archive, out)
    before = {path.name: path.read_bytes() for path in (out / "_plan").iterdir()}
    again = plan(archive, out)
    assert (again.num_new, again.items) == (0, first.items)
    assert {path.name: path.read_bytes() for path in (out / "_plan").iterdir()} == before
    write_wav(archive / "00.wav", 5)
    shutil.rmtree(archive / "nothing", ignore_errors=True)
    (archive / "10.wav").unlink()
    third = plan(archive, out)
    assert third.num_new == 1
    assert third.items.slice(0, 10).equals(first.items)
    assert Path(third.items["uri"][10].as_py()).name == "00.wav"
    assert {path.name: path.read_bytes() for path in (out / "_plan").iterdir()}.items() > before.items()
    assert sorted(os.listdir(out / "_plan")) == ["job.json", "plan-00001.parquet", "plan-00002.parquet"]
    assert list(third.shard_seconds)[:7] == list(first.shard_seconds)


@pytest.mark.parametrize("change", ["size", "mtime"])
def test_a_changed_recording_is_refused(archive: Path, tmp_path: Path, change: str) -> None:
    plan(archive, tmp_path / "out")
    if change == "size":
        write_wav(archive / "03.wav", 31)
    else:
        os.utime(archive / "03.wav", ns=(0, 1_700_000_000_123_456_789))
    shown = "size 240044 -> 248044" if change == "size" else r"-> mtime 2023-11-14 22:13:20\.12345\d UTC"
    with pytest.raises(OutputError, match=rf"03\.wav' has changed since it was planned.*{shown}") as caught:
        plan(archive, tmp_path / "out")
    assert "name a new --output" in str(caught.value)
    assert os.listdir(tmp_path / "out" / "_plan").__len__() == 2
    plan(archive, tmp_path / "new")


def test_a_recording_that_is_gone_stays_as_it_was_planned(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(silence(1))
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps({"audio_filepath": f"{name}.wav"}) + "\n" for name in "ab"))
    make_plan([str(manifest)], str(tmp_path / "out"), shard_seconds=60, job=JOB)
    (tmp_path / "a.wav").unlink()
    for on_change in ("refuse", "new"):
        again = make_plan(
            [str(manifest)], str(tmp_path / "out"), shard_seconds=60, job=JOB, on_change=on_change
        )
        assert (again.num_new, again.num_items) == (0, 2)


def test_a_changed_text_to_align_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(silence(1))
    manifest = tmp_path / "manifest.jsonl"
    aligning = JOB | {"text_key": "text"}
    for text in ("wrong words", "right words"):
        manifest.write_text(json.dumps({"audio_filepath": "a.wav", "text": text}))
        if text == "wrong words":
            make_plan([str(manifest)], str(tmp_path / "out"), shard_seconds=60, job=aligning)
            make_plan([str(manifest)], str(tmp_path / "plain"), shard_seconds=60, job=JOB)
    with pytest.raises(OutputError, match=r"has changed since it was planned.*what the manifest says of it"):
        make_plan([str(manifest)], str(tmp_path / "out"), shard_seconds=60, job=aligning)
    again = make_plan([str(manifest)], str(tmp_path / "plain"), shard_seconds=60, job=JOB)
    assert again.num_new == 0  # where it is no input


def test_a_changed_tar_is_refused(archive: Path, tmp_path: Path) -> None:
    def write(number: int) -> None:
        with tarfile.open(tmp_path / "t.tar", "w") as tar:
            for path in sorted(archive.iterdir())[:number]:
                tar.add(path, path.name)

    write(3)
    assert plan(tmp_path / "t.tar", tmp_path / "out").num_items == 3
    assert plan(tmp_path / "t.tar", tmp_path / "out").num_new == 0
    write(4)
    with pytest.raises(OutputError, match=r"t\.tar' has changed .* \(and 2 more\)"):
        plan(tmp_path / "t.tar", tmp_path / "out")


def test_a_changed_job_is_refused_with_the_difference(archive: Path, tmp_path: Path) -> None:
    plan(archive, tmp_path / "out")
    with pytest.raises(OutputError, match=r"settings \(dtype 'float32' -> 'float16', extra None -> 1\)"):
        plan(archive, tmp_path / "out", dtype="float16", extra=1)
    assert plan(archive, tmp_path / "out").num_new == 0


def test_a_job_that_planned_nothing_may_change(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        plan(tmp_path / "nowhere", tmp_path / "out")
    planned = plan(archive, tmp_path / "out", dtype="float16")
    record = json.loads((tmp_path / "out/_plan/job.json").read_text())
    assert record["job_fingerprint"] == planned.job_fingerprint


def test_a_folder_of_something_else_is_no_output(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"holds '01\.wav' and no plan"):
        plan(archive, archive)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".gitkeep").write_text("")
    assert plan(archive, tmp_path / "out").num_items == 10


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ({"plan-00001.parquet": "PAR1"}, r"plan-00001\.parquet' cannot be read"),
        ({"plan-00001.parquet": None}, r"plan-00001\.parquet' is gone"),
        ({"job.json": "{"}, r"job\.json' cannot be read"),
        ({"job.json": '{"job": {}, "schema_version": 99}'}, "schema version 99"),
    ],
)
def test_a_damaged_plan_is_named(
    archive: Path, tmp_path: Path, damage: dict[str, str | None], complaint: str
) -> None:
    plan(archive, tmp_path / "out")
    write_wav(archive / "new.wav", 1)
    plan(archive, tmp_path / "out")
    for name, content in damage.items():
        path = tmp_path / "out" / "_plan" / name
        path.unlink() if content is None else path.write_text(content)
    with pytest.raises(OutputError, match=complaint):
        plan(archive, tmp_path / "out")


# ---- duplicates and damage


def test_recordings_named_twice_are_planned_once(archive: Path, tmp_path: Path) -> None:
    planned = plan([str(archive), str(archive / "03.wav"), str(archive / "0*.wav")], tmp_path / "out")
    assert (planned.num_items, planned.num_duplicates) == (10, 10)
    assert planned.items["recording_id"].to_pylist() == sorted(planned.items["recording_id"].to_pylist())


def test_two_recordings_of_one_name_are_refused(archive: Path, tmp_path: Path) -> None:
    objects = [{"audio_filepath": f"archive/0{number}.wav", "id": "same"} for number in (1, 2)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, objects)))
    with pytest.raises(InputError, match=r"two recordings are called 'same': '.*01\.wav' .* and '.*02\.wav'"):
        plan(tmp_path / "m.jsonl", tmp_path / "out")


def test_one_recording_of_two_names_is_planned_twice(archive: Path, tmp_path: Path) -> None:
    objects = [{"audio_filepath": "archive/01.wav", "id": name} for name in ("a", "b")]
    (tmp_path / "m.jsonl").write_text(json.dumps(objects[0]))
    assert plan(tmp_path / "m.jsonl", tmp_path / "out").num_new == 1
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, objects)))
    assert plan(tmp_path / "m.jsonl", tmp_path / "out").num_new == 1


def test_a_damaged_tar_is_an_item(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for path in sorted(archive.iterdir())[:3]:
            tar.add(path, path.name)
    data = (tmp_path / "t.tar").read_bytes()
    (tmp_path / "t.tar").write_bytes(data[:100_000])
    planned = plan(tmp_path / "t.tar", tmp_path / "out")
    assert planned.items["planned_s"].to_pylist() == [10, 0]
    assert [offset is None for offset in planned.items["byte_offset"].to_pylist()] == [False, True]
    assert "is cut off inside its member" in planned.items["metadata"][1].as_py()
    assert plan(tmp_path / "t.tar", tmp_path / "out").num_new == 0


def test_names_that_are_not_utf8_are_planned(tmp_path: Path) -> None:
    write_wav(tmp_path / "archive" / os.fsdecode(b"\xff\xfe.wav"), 3)
    planned = plan(tmp_path / "archive", tmp_path / "out")
    assert planned.items["planned_s"].to_pylist() == [3]


# ---- several runs, and stores


def test_a_slower_run_plans_what_the_faster_left(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real, faster = records.publish_plan, [str(archive / "0[1-4].wav")]

    def publish_plan(output: str, items: pa.Table, number: int) -> bool:
        if faster:
            inputs = [faster.pop()]
            assert plan(inputs, out).num_new == 4
        return real(output, items, number)

    monkeypatch.setattr(records, "publish_plan", publish_plan)
    planned = plan(archive, out)
    assert (planned.num_new, planned.num_items) == (6, 10)
    ids = planned.items["recording_id"].to_pylist()
    assert len(set(ids)) == 10
    assert planned.items.equals(records.read_plans(str(out))[0])


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_runs_at_once_end_with_one_plan(
    archive: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    out = str(tmp_path / "out") if kind == "local" else request.getfixturevalue("s3") + "/out"
    inputs = [str(archive), str(archive / "0[1-5].wav"), str(archive / "*.wav"), str(archive / "[01]*")]
    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(lambda text: plan(text, out), inputs))
    items, _ = records.read_plans(out)
    assert sorted(items["recording_id"].to_pylist()) == sorted(str(path) for path in archive.iterdir())
    assert sum(planned.num_new for planned in plans) == 10
    assert {planned.num_items for planned in plans} <= {5, 10}
    assert plan(archive, out).num_new == 0


def test_archives_and_outputs_may_lie_in_a_store(s3: str, archive: Path) -> None:
    for path in archive.iterdir():
        stores.publish(f"{s3}/archive/{path.name}", path.read_bytes())
    planned = plan(f"{s3}/archive", f"{s3}/out")
    assert planned.items["planned_s"].to_pylist() == [number * 10 for number in range(1, 11)]
    assert [version[:5] for version in planned.items["version"].to_pylist()] == ["etag:"] * 10
    publish(planned, planned.pending[0])
    again = plan(f"{s3}/archive", f"{s3}/out")
    assert again.pending == planned.pending[1:]
    found = status(f"{s3}/out/")
    assert (found.num_shards_done, found.done_s, found.pending_s, found.num_rows) == (1, 100, 450, 4)
    stores.publish(f"{s3}/archive/03.wav", b"RIFF")
    with pytest.raises(OutputError, match=r"03\.wav' has changed .*size 240044 -> 4, version etag:\w+ -> "):
        plan(f"{s3}/archive", f"{s3}/out")
    with pytest.raises(OutputError, match=r"holds '01\.wav' and no plan"):
        plan(archive, f"{s3}/archive")


# ---- what is done


def test_status_counts_what_is_published(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    planned = plan(archive, out)
    before = status(str(out))
    assert (before.num_items, before.num_shards, before.num_shards_pending) == (10, 7, 7)
    assert (before.planned_s, before.pending_s, before.done_s, before.rejected_s) == (550, 550, 0, 0)
    publish(planned, planned.pending[0], num_rejects=2)
    publish(planned, planned.pending[3])
    now = status(str(out))
    assert (now.num_shards_done, now.num_shards_pending) == (2, 5)
    assert (now.num_items_done, now.num_items_rejected, now.reject_rate) == (5, 2, 0.4)
    assert (now.done_s, now.rejected_s, now.pending_s) == (140, 30, 380)
    assert now.done_s + now.rejected_s + now.pending_s == now.planned_s
    assert (now.num_rows, now.num_rejects, now.rejects_by_reason) == (3, 2, {"DecodeError": 2})
    assert json.loads(now.to_json())["rejects_by_reason"] == {"DecodeError": 2}
    again = plan(archive, out)
    assert again.pending == tuple(p for i, p in enumerate(planned.pending) if i not in (0, 3))
    assert again.pending_s == 380
    assert [table["shard_id"][0].as_py() for table in again.pending_tables()] == list(again.pending)
    assert not any(table.num_rows == 0 for table in again.pending_tables())


def test_status_of_what_is_no_output_says_so(tmp_path: Path, archive: Path) -> None:
    for place in (tmp_path / "nowhere", archive, "zip://a::s3://b"):
        with pytest.raises(OutputError, match=r"holds no plan|chained"):
            status(str(place))
    planned = plan(archive, tmp_path / "out")
    part = tmp_path / "out" / "transcripts" / f"part-{planned.pending[0]}.parquet"
    part.parent.mkdir()
    part.write_bytes(b"PAR1")
    with pytest.raises(OutputError, match="is no part of this output"):
        status(str(tmp_path / "out"))


def test_files_of_a_plan_are_plain_parquet(archive: Path, tmp_path: Path) -> None:
    planned = plan(archive, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "_plan" / "plan-00001.parquet")
    assert table.equals(planned.items)
    assert table.schema.field("planned_s").metadata[b"unit"] == b"s"


def test_decoding_again_plans_what_its_source_has_published(archive: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "out", str(tmp_path / "again")
    first = plan(archive, source, keep_log_probs=8)
    with pytest.raises(OutputError, match="has no published shards yet"):
        make_redecode_plan(str(source), output, job={"alpha": 1})
    shards = list(first.pending)
    for shard in shards[:2]:
        publish(first, shard)
    again = make_redecode_plan(str(source), output, job={"alpha": 1})
    assert sorted(again.pending) == sorted(shards[:2])
    assert again.num_items == sum(t.num_rows for t in first.shard_tables(shards[:2]))
    publish(again, again.pending[0])
    publish(first, shards[2])
    later = make_redecode_plan(str(source), output, job={"alpha": 1})
    assert sorted([*later.pending, again.pending[0]]) == sorted(shards[:3])
    assert len(list((tmp_path / "again" / "_plan").glob("plan-*.parquet"))) == 2
    assert status(output).num_shards_pending == 2
    with pytest.raises(OutputError, match="alpha 1 -> 2"):
        make_redecode_plan(str(source), output, job={"alpha": 2})
    with pytest.raises(OutputError, match="is the source itself"):
        make_redecode_plan(str(source), str(source), job={})
    other = plan(archive, tmp_path / "kept_none")
    publish(other, other.pending[0])
    with pytest.raises(OutputError, match="holds no log-probabilities"):
        make_redecode_plan(str(tmp_path / "kept_none"), output, job={"alpha": 1})
    with pytest.raises(OutputError, match="is not the output of a job"):
        make_redecode_plan(str(archive), output, job={"alpha": 1})


def test_jobs_that_take_an_output_at_once_never_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes to the name first, the plan decides, and the other finds out."""
    manifest, output = write_archive(tmp_path / "in", {"a.wav": "x"}), str(tmp_path / "out")
    real = records.publish_plan

    def publish_late(output: str, items: pa.Table, number: int) -> bool:
        records.claim_output(output, JOB | {"model": "other"})
        return real(output, items, number)

    with monkeypatch.context() as patch:
        patch.setattr(records, "publish_plan", publish_late)
        with pytest.raises(OutputError, match="was taken by a job with other settings"):
            plan(manifest, output)

    output = str(tmp_path / "other")
    records.claim_output(output, JOB)

    def publish_early(path: str, data: bytes, **options: bool) -> bool:
        if not options.get("exclusive") and not records.read_plans(output)[1]:
            real(output, ITEM.empty_table(), 1)
        return publish(path, data, **options)

    publish = stores.publish
    with monkeypatch.context() as patch:
        patch.setattr(stores, "publish", publish_early)
        with pytest.raises(OutputError, match=r"belongs to a job with other settings .*'m' -> 'other'"):
            records.claim_output(output, JOB | {"model": "other"})
    assert records.read_job(output)[1]["model"] == "m"
