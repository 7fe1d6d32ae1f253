"""CSV and TSV manifests, and what the keys of every kind of manifest mean."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from w2v_ray import stores
from w2v_ray.errors import InputError
from w2v_ray.inputs import Entry, list_inputs


def listed(*inputs: str | Path, **options: Any) -> list[Entry]:
    return list(list_inputs([str(text) for text in inputs], skipped=Counter(), **options))


def said(entry: Entry) -> Any:
    return json.loads(entry.metadata or "null")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "b c.wav"):
        (tmp_path / name).write_bytes(b"12")
    return tmp_path


def test_a_csv_gives_ranges_channels_ids_and_its_further_columns(folder: Path) -> None:
    (folder / "m.csv").write_text(
        "\ufefffilename,start,end,channel,id,text,speaker\r\n"
        '"a.wav",1.5,4,,,"said ""hi"", twice\nover",1\r\n'
        "\r\n"
        "b c.wav,,,1,,,2\r\n"
        "a.wav,,2,,first,,\r\n"
        "a.wav,3,,0,,,\r\n",
        encoding="utf-8",
    )
    entries = listed(folder / "m.csv")
    assert [entry.recording_id for entry in entries] == [
        f"{folder}/a.wav#t=1.5,4",
        f"{folder}/b c.wav#channel=1",
        "first",
        f"{folder}/a.wav#t=3,&channel=0",
    ]
    assert [(entry.start_s, entry.end_s, entry.duration_s, entry.channel) for entry in entries] == [
        (1.5, 4, 2.5, None),
        (None, None, None, 1),
        (None, 2, 2, None),
        (3, None, None, 0),
    ]
    assert said(entries[0]) == {"id": "", "text": 'said "hi", twice\nover', "speaker": "1"}
    assert {(entry.byte_size, entry.version) for entry in entries[:1]} == {
        (2, stores.info(str(folder / "a.wav")).version)  # type: ignore[union-attr]
    }


def test_a_tsv_has_no_quotes_and_may_be_gzipped(folder: Path) -> None:
    text = 'client_id\tpath\tsentence\n7\ta.wav\t"Halb offen\n'
    (folder / "validated.tsv").write_text(text)
    packed = ("validated.tsv.gz", "LOUD.TSV.GZ")
    for name in packed:
        (folder / name).write_bytes(gzip.compress(text.encode()))
    for name in ("validated.tsv", *packed):
        (entry,) = listed(folder / name)
        assert entry.uri == f"{folder}/a.wav"
        assert said(entry) == {"client_id": "7", "sentence": '"Halb offen'}


def test_every_kind_of_manifest_says_the_same(folder: Path) -> None:
    row: dict[str, Any] = {
        "wav": "a.wav",
        "offset": 1,
        "duration": 2.5,
        "channel": 1,
        "text": "hi",
        "id": "x",
    }
    (folder / "m.csv").write_text(",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
    (folder / "m.tsv").write_text("\t".join(row) + "\n" + "\t".join(map(str, row.values())) + "\n")
    (folder / "m.json").write_text(json.dumps([row]))
    (folder / "m.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "m.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    expected = listed(folder / "m.jsonl")
    assert (expected[0].recording_id, expected[0].start_s, expected[0].end_s, expected[0].channel) == (
        "x",
        1,
        3.5,
        1,
    )
    for name in ("m.csv", "m.tsv", "m.json", "m.jsonl.gz"):
        assert listed(folder / name) == expected


@pytest.mark.parametrize(
    "key", ["audio_filepath", "path", "file", "filename", "uri", "wav", "audio", "my column"]
)
def test_the_column_of_the_files_has_many_names(folder: Path, key: str) -> None:
    (folder / "m.csv").write_text(f"text,{key}\nhi,a.wav\n")
    (folder / "m.jsonl").write_text(json.dumps({"text": "hi", key: "a.wav"}))
    column = key if key == "my column" else None
    (entry,) = listed(folder / "m.csv", audio_column=column)
    assert (entry.uri, said(entry)) == (f"{folder}/a.wav", {"text": "hi"})
    assert listed(folder / "m.jsonl", audio_column=column) == [entry]


def test_the_first_of_the_names_is_taken_and_the_others_carried(folder: Path) -> None:
    (folder / "m.csv").write_text("audio,path\nb c.wav,a.wav\n")
    (entry,) = listed(folder / "m.csv")
    assert (entry.uri, said(entry)) == (f"{folder}/a.wav", {"audio": "b c.wav"})
    (entry,) = listed(folder / "m.csv", audio_column="audio")
    assert (entry.uri, said(entry)) == (f"{folder}/b c.wav", {"path": "a.wav"})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name,text\na.wav,hi\n", r"the header in line 1 of .* has no column audio_filepath or .*name, text"),
        ("path,text,text\n", "names 'text' twice"),
        ("path,text\na.wav,hi\na.wav,hi,there\n", "line 3 of .* has 3 cells where the header has 2; quote"),
        ("path,text\na.wav\n", "line 2 of .* has 1 cells where the header has 2"),
        ('path,text\na.wav,"hi"there\n', "line 2 of .* cannot be read as a table"),
        ("path,offset\na.wav,one\n", "line 2 of .* has 'one' as 'offset'; give seconds"),
        ("path,offset\na.wav,nan\n", "line 2 of .* has 'nan' as 'offset'; give seconds"),
        ("path,start,end\na.wav,3,3\n", "line 2 of .* ends at 3 s, not after its start"),
        ("path,channel\na.wav,left\n", "line 2 of .* has 'left' as 'channel'; give its number"),
        ("path,channel\na.wav,1.5\n", "line 2 of .* has '1.5' as 'channel'"),
        ("path,text\n,hi\n", "line 2 of .* has no text under"),
        ("path\ns3://b/a::zip://c\n", "line 2 of .* chained URL"),
    ],
)
def test_a_row_that_is_wrong_is_named(folder: Path, text: str, complaint: str) -> None:
    (folder / "m.csv").write_text(text)
    with pytest.raises(InputError, match=complaint) as caught:
        listed(folder / "m.csv")
    assert "\n" not in str(caught.value)


def test_a_gzipped_manifest_that_is_cut_off_is_refused(folder: Path) -> None:
    lines = "".join(json.dumps({"path": "a.wav", "id": str(number)}) + "\n" for number in range(1000))
    packed = gzip.compress(lines.encode())
    (folder / "m.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match=r"m.jsonl.gz' is cut off: its gzip stream ends within"):
        listed(folder / "m.jsonl.gz")
