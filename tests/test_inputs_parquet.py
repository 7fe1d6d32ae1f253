"""Parquet and Hugging Face datasets: rows that hold audio, or name it."""

from __future__ import annotations

import datetime
import decimal
import json
import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from w2v_ray import stores
from w2v_ray.errors import InputError
from w2v_ray.inputs import Entry, list_inputs
from w2v_ray.inputs.columns import AudioColumn, scalar_names, scalar_rows
from w2v_ray.plan import make_plan
from w2v_ray.schema import DAMAGE_KEY
from w2v_ray.stages.read_audio import ReadAudio

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def listed(*inputs: str | Path, **options: Any) -> list[Entry]:
    skipped = options.pop("skipped", Counter())
    return list(list_inputs([str(text) for text in inputs], skipped=skipped, **options))


def said(entry: Entry) -> Any:
    return json.loads(entry.metadata or "null")


def sound(number: int) -> bytes:
    return bytes([number]) * (100 + number)


def read(plan: Any) -> list[tuple[bytes | None, str | None]]:
    """The bytes and the error of every item of a plan."""
    rows = []
    for table in plan.shard_tables():
        result = ReadAudio()(table)
        errors = [error and error["message"] for error in result["error"].to_pylist()]
        rows += zip(result["audio_bytes"].to_pylist(), errors, strict=True)
    return rows


def planned(output: Path, *inputs: str | Path, **options: Any) -> Any:
    return make_plan([str(text) for text in inputs], str(output), shard_seconds=100, job={}, **options)


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3")


def write(uri: str, table: pa.Table, **options: Any) -> str:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    stores.publish(uri, sink.getvalue().to_pybytes())
    return uri


def test_rows_with_audio_are_planned_and_read(root: str, tmp_path: Path) -> None:
    count = 25
    table = pa.table(
        {
            "id": list(range(count)),
            "audio": pa.array([{"bytes": sound(n), "path": f"{n}.flac"} for n in range(count)], AUDIO),
            "text": [f"say {n}" for n in range(count)],
            "score": [float("nan") if n == 1 else n / 2 for n in range(count)],
            "when": [datetime.datetime(2026, 1, 2, 3, 4, n) for n in range(count)],
            "tags": [["x"]] * count,
            "picture": [b"png"] * count,
        }
    )
    uri = write(stores.join(root, "data", "one.parquet"), table, row_group_size=10)
    plan = planned(tmp_path / "out", stores.join(root, "data"))
    rows = plan.items.to_pylist()
    assert [row["recording_id"] for row in rows] == [f"{uri}#{n}" for n in range(count)]
    assert {(row["uri"], row["container"], row["byte_offset"], row["byte_size"]) for row in rows} == {
        (uri, "parquet:audio", None, None)
    }
    assert [row["row"] for row in rows] == list(range(count))
    assert json.loads(rows[1]["metadata"]) == {
        "path": "1.flac",
        "id": 1,
        "text": "say 1",
        "score": None,
        "when": "2026-01-02 03:04:01.000000",
    }
    assert read(plan) == [(sound(n), None) for n in range(count)]
    again = planned(tmp_path / "out", stores.join(root, "data"))
    assert (again.num_new, again.num_items) == (0, count)


def test_many_files_are_looked_into_at_once_and_keep_their_order(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [3, 2500, 0, 1, 40]
    for number, count in enumerate(counts):
        table = pa.table({"audio": pa.array([b"1"] * count, pa.binary())})
        write(stores.join(root, "data", f"{number}.parquet"), table, row_group_size=1000)
    write(stores.join(root, "data", "9.parquet"), pa.table({"number": [1]}))
    together = threading.Barrier(2)
    real = pq.ParquetFile

    def opened(source: Any) -> pq.ParquetFile:
        together.wait(60)  # a file that is opened alone would end this
        return real(source)

    monkeypatch.setattr(pq, "ParquetFile", opened)
    skipped: Counter[str] = Counter()
    entries = listed(stores.join(root, "data"), skipped=skipped)
    expected = [f"{n}.parquet#{row}" for n, count in enumerate(counts) for row in range(count)]
    assert [entry.recording_id.rpartition("/")[2] for entry in entries] == expected
    assert skipped[".parquet files without audio"] == 1


def test_planning_reads_no_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = [random.Random(n).randbytes(50_000) for n in range(40)]
    uri = write(str(tmp_path / "a.parquet"), pa.table({"audio": noise, "text": ["x"] * 40}), row_group_size=8)
    num_bytes = 0
    from w2v_ray.stores import ranges

    pread = ranges.os.pread

    def counting(descriptor: int, size: int, offset: int) -> bytes:
        nonlocal num_bytes
        num_bytes += size
        return pread(descriptor, size, offset)

    monkeypatch.setattr(ranges.os, "pread", counting)
    entries = listed(uri)
    assert len(entries) == 40
    assert Path(uri).stat().st_size > 1_500_000
    assert num_bytes < 700_000  # blocks of 64 KiB around the small columns of five row groups
    assert {round(entry.duration_s or 0, 1) for entry in entries} == {6.3}  # 50,000 bytes at 8 kB/s


def test_each_row_group_is_read_once_for_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"audio": [sound(n) for n in range(30)]})
    write(str(tmp_path / "a.parquet"), table, row_group_size=10)
    plan = planned(tmp_path / "out", tmp_path / "a.parquet")
    assert plan.num_shards == 1
    asked: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def counting(self: pq.ParquetFile, *args: Any, **options: Any) -> Any:
        asked.extend(options["row_groups"])
        return iter_batches(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counting)
    (items,) = plan.shard_tables()
    some = items.take(pa.array([29, 3, 0, 25, 28]))  # the middle one is not needed
    assert ReadAudio()(some)["audio_bytes"].to_pylist() == [sound(n) for n in (29, 3, 0, 25, 28)]
    assert asked == [0, 2]


def test_rows_that_name_files_are_a_manifest(root: str, tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        stores.publish(stores.join(root, name), b"12")
    table = pa.table(
        {"path": ["../a.wav", "../b.wav"], "text": ["x", "y"], "offset": [None, 1.0], "id": [7, 8]}
    )
    uri = write(stores.join(root, "lists", "m.parquet"), table)
    one, other = listed(uri)
    assert (one.recording_id, one.uri, one.byte_size, one.container) == (
        "7",
        stores.join(root, "a.wav"),
        2,
        None,
    )
    assert (other.recording_id, other.start_s, said(other)) == ("8", 1.0, {"text": "y"})
    with pytest.raises(InputError, match=r"row 0 of .* has no text under 'path'"):
        listed(write(stores.join(root, "m.parquet"), pa.table({"path": pa.array([None], pa.string())})))


@pytest.mark.parametrize("is_counted", [True, False])
def test_rows_without_bytes_are_files_or_rejects(tmp_path: Path, is_counted: bool) -> None:
    (tmp_path / "b.wav").write_bytes(b"other")
    values = [
        {"bytes": b"one", "path": "a.wav"},
        {"bytes": None, "path": "b.wav"},
        {"bytes": None, "path": None},
        None,
    ]
    for name, rows in {"mixed": values, "paths": values[1:2]}.items():
        table = pa.table({"audio": pa.array(rows, AUDIO)})
        uri = write(str(tmp_path / f"{name}.parquet"), table, write_statistics=is_counted)
        plan = planned(tmp_path / name, uri)
        if name == "paths":
            assert read(plan) == [(b"other", None)]
            continue
        assert read(plan) == [
            (b"one", None),
            (b"other", None),
            (None, f"row 2 of {uri!r} has no audio in its column 'audio'"),
            (None, f"row 3 of {uri!r} has no audio in its column 'audio'"),
        ]


def test_values_of_any_type_become_json() -> None:
    day = datetime.date(2026, 1, 2)
    batch = pa.record_batch(
        {
            "day": pa.array([day, None]).dictionary_encode(),
            "score": pa.array([float("nan"), 0.5]).dictionary_encode(),
            "pause": pa.array([3, 4], pa.duration("s")),
            "money": pa.array([decimal.Decimal("1.50"), None]),
            "span": pa.array([pa.MonthDayNano([1, 2, 3])] * 2),
        }
    )
    names = scalar_names(batch.schema, AudioColumn("audio", "bytes"))
    assert list(scalar_rows(batch, names)) == [
        {"day": "2026-01-02", "score": None, "pause": "3", "money": "1.50"},
        {"day": None, "score": 0.5, "pause": "4", "money": None},
    ]


@pytest.mark.parametrize(
    ("columns", "name", "expected"),
    [
        ({"x": [b"1"], "n": [1]}, None, "parquet:x"),
        ({"image": [b"1"], "audio": [b"2"]}, None, "parquet:audio"),
        ({"image": [b"1"], "wav": [b"2"]}, None, "parquet:wav"),
        ({"image": [b"1"], "audio": [b"2"]}, "image", "parquet:image"),
        ({"one": [b"1"], "two": [b"2"]}, None, r"several columns that may hold audio \(one, two\)"),
        ({"one": [b"1"]}, "three", r"has no column 'three', which audio_column names \(its columns: one\)"),
        ({"one": [b"1"], "two": [2]}, "two", "the column 'two' of .* is int64, expected bytes"),
        ({"one": [1], "text": ["x"]}, None, r"has no column of audio \(its columns: one, text\)"),
    ],
)
def test_the_column_is_found(tmp_path: Path, columns: Any, name: str | None, expected: str) -> None:
    uri = write(str(tmp_path / "a.parquet"), pa.table(columns))
    if expected.startswith("parquet:"):
        assert [entry.container for entry in listed(uri, audio_column=name)] == [expected]
    else:
        with pytest.raises(InputError, match=expected):
            listed(uri, audio_column=name)


def test_parquet_without_audio_in_a_folder_is_counted(tmp_path: Path) -> None:
    write(str(tmp_path / "a.parquet"), pa.table({"audio": [b"1"]}))
    write(str(tmp_path / "b.parquet"), pa.table({"number": [1]}))
    skipped: Counter[str] = Counter()
    assert len(listed(tmp_path, skipped=skipped)) == 1
    assert skipped == {
        ".parquet files without audio": 1,
        "folders whose names begin with . or _, and all below": 1,
    }  # _tmp


def test_a_damaged_parquet_file_is_one_reject(tmp_path: Path) -> None:
    uri = write(str(tmp_path / "a.parquet"), pa.table({"audio": [b"1"]}))
    whole = Path(uri).read_bytes()
    Path(uri).write_bytes(whole[:-40])
    (entry,) = listed(tmp_path)
    assert "is no whole Parquet file" in said(entry)[DAMAGE_KEY]
    plan = planned(tmp_path / "out", tmp_path / "a.parquet")
    ((data, message),) = read(plan)
    assert data is None
    assert "repair it, as only the 0 recordings" in (message or "")


def test_a_file_that_changed_or_went_costs_its_items_only(tmp_path: Path) -> None:
    one = write(str(tmp_path / "in" / "1.parquet"), pa.table({"audio": [b"1", b"2"]}))
    two = write(str(tmp_path / "in" / "2.parquet"), pa.table({"audio": [b"3"]}))
    three = write(str(tmp_path / "in" / "3.parquet"), pa.table({"audio": [b"4"]}))
    plan = planned(tmp_path / "out", tmp_path / "in")
    write(one, pa.table({"audio": [b"5"]}))
    Path(three).unlink()
    versions = f"{plan.items['version'][0]} -> mtime:{Path(one).stat().st_mtime_ns}"
    changed = f"{one!r} has changed since it was planned ({versions}); plan it again into a new output"
    assert read(plan) == [
        (None, changed),
        (None, changed),
        (b"3", None),
        (None, f"{three!r} does not exist; restore it, or leave it out"),
    ]
    assert two


# ---- Hugging Face datasets


@pytest.fixture
def speech(tmp_path: Path) -> datasets.Dataset:
    kinds = {"id": "Value", "audio": "Audio", "text": "Value"}
    features: dict[str, Any] = {
        name: {"_type": kind} | ({"dtype": "string"} if kind == "Value" else {"decode": False})
        for name, kind in kinds.items()
    }
    table = pa.table(
        {
            "id": [f"u{n}" for n in range(25)],
            "audio": pa.array([{"bytes": sound(n), "path": f"{n}.wav"} for n in range(25)], AUDIO),
            "text": [f"say {n}" for n in range(25)],
        }
    )
    noted = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return datasets.Dataset(datasets.table.InMemoryTable(table.replace_schema_metadata(noted)))


def test_a_saved_dataset_is_read_in_place(speech: datasets.Dataset, tmp_path: Path) -> None:
    speech.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": speech, "test": speech.select([3, 1])}).save_to_disk(tmp_path / "splits")
    plan = planned(tmp_path / "out", tmp_path / "one")
    assert read(plan) == [(sound(n), None) for n in range(25)]
    row = plan.items.to_pylist()[14]
    assert (row["container"], row["row"]) == ("arrow:audio", 1)
    assert row["uri"].endswith("one/data-00001-of-00002.arrow")
    assert json.loads(row["metadata"]) == {"path": "14.wav", "id": "u14", "text": "say 14"}
    assert row["planned_s"] == pytest.approx(114 / 32_000)
    assert planned(tmp_path / "out", tmp_path / "one").num_new == 0
    assert read(planned(tmp_path / "out2", tmp_path / "splits"))[25:] == [(sound(3), None), (sound(1), None)]


def test_a_saved_dataset_that_is_not_whole_is_refused(speech: datasets.Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    speech.save_to_disk(folder)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": "../x.arrow"}]}))
    with pytest.raises(InputError, match=r"is no whole saved dataset .*x\.arrow"):
        listed(folder)
    (folder / "state.json").write_text(json.dumps(state))
    path = folder / state["_data_files"][0]["filename"]
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match="is no whole Arrow file"):
        listed(folder)
    path.unlink()
    with pytest.raises(InputError, match="does not exist; save the dataset again"):
        listed(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(InputError, match="is no whole saved dataset"):
        listed(folder)


def test_a_dataset_by_its_name(
    speech: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "talks").mkdir()
    for split, rows in {"train": range(20), "test": range(20, 25)}.items():
        speech.select(rows).to_parquet(tmp_path / "talks" / f"{split}-0.parquet")
    name = f"hf-dataset://{tmp_path}/talks"
    plan = planned(tmp_path / "out", f"{name}?split=test")
    assert read(plan) == [(sound(n), None) for n in range(20, 25)]
    assert {row["container"] for row in plan.items.to_pylist()} == {"arrow:audio"}
    assert planned(tmp_path / "out", f"{name}?split=test").num_new == 0
    assert len(listed(name)) == 25
    for text, complaint in [
        (f"{name}?split=dev", "cannot be loaded"),
        (f"{name}?spilt=test", "has 'spilt' after its '[?]'; write hf-dataset://NAME"),
        (f"{name}?split", "has 'split' after its '[?]'"),
        (f"{name}?split=train[:5]", "takes a part of a split; name whole splits"),
        ("hf-dataset://", "has no name; write"),
    ]:
        with pytest.raises(InputError, match=complaint) as caught:
            listed(text)
        assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"'hf-dataset://nobody/nothing' cannot be loaded .*check its name"
    ) as caught:
        listed("hf-dataset://nobody/nothing")
    assert "\n" not in str(caught.value)
