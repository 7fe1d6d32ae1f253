"""Lhotse's cuts and Shar folders, written here as its documentation has them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from w2v_ray import stores
from w2v_ray.errors import InputError
from w2v_ray.inputs import Entry, list_inputs
from w2v_ray.schema import DAMAGE_KEY


def listed(*inputs: str | Path, skipped: Counter[str] | None = None) -> list[Entry]:
    counts = Counter() if skipped is None else skipped
    return list(list_inputs([str(text) for text in inputs], skipped=counts))


def said(entry: Entry) -> Any:
    return json.loads(entry.metadata or "null")


def supervision(text: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "s",
        "recording_id": "rec",
        "start": 0.0,
        "duration": 2.5,
        "channel": 0,
        "text": text,
    } | more


def cut(name: str = "cut-1", sources: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    sources = sources or [{"type": "file", "channels": [0], "source": "audio/rec.wav"}]
    recording = {
        "id": "rec",
        "sources": sources,
        "sampling_rate": 16_000,
        "num_samples": 160_000,
        "duration": 10.0,
        "channel_ids": sorted({channel for source in sources for channel in source["channels"]}),
    }
    whole = {
        "id": name,
        "start": 0.0,
        "duration": 10.0,
        "channel": 0,
        "recording": recording,
        "type": "MonoCut",
    }
    return whole | changes


def write(path: Path, *cuts: dict[str, Any]) -> Path:
    data = "".join(json.dumps(one) + "\n" for one in cuts).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "audio").mkdir()
    for name in ("rec.wav", "left.wav", "right.wav"):
        (tmp_path / "audio" / name).write_bytes(b"1")
    return tmp_path


def test_cuts_are_ranges_with_what_their_supervisions_say(folder: Path) -> None:
    supervisions = [
        supervision("hello", speaker="anna", language="English"),
        supervision("there", speaker="bert", language="English"),
    ]
    cuts = [
        cut(supervisions=supervisions, custom={"snr": 12.5, DAMAGE_KEY: "not for a manifest to say"}),
        cut("cut-2", start=1.25, duration=2.5, supervisions=[supervision("hi", gender="F")]),
    ]
    for name in ("cuts.jsonl", "cuts.jsonl.gz"):
        whole, part = listed(write(folder / name, *cuts))
        assert (whole.recording_id, whole.uri) == ("cut-1", str(folder / "audio" / "rec.wav"))
        assert (whole.start_s, whole.end_s, whole.duration_s, whole.channel) == (None, None, 10, None)
        assert said(whole) == {"snr": 12.5, "text": "hello there", "language": "English"}
        assert (part.start_s, part.end_s, part.duration_s) == (1.25, 3.75, 2.5)
        assert said(part) == {"text": "hi", "gender": "F"}


def test_a_cut_takes_its_channel(folder: Path) -> None:
    stereo = [{"type": "file", "channels": [0, 1], "source": "audio/rec.wav"}]
    apart = [
        {"type": "file", "channels": [0], "source": "audio/left.wav"},
        {"type": "url", "channels": [1], "source": "audio/right.wav"},
    ]
    cuts = [
        cut("a", stereo, channel=1),
        cut("b", stereo, channel=[0, 1], type="MultiCut"),
        cut("c", apart, channel=1),
    ]
    entries = listed(write(folder / "cuts.jsonl", *cuts))
    assert [entry.channel for entry in entries] == [1, None, None]
    assert [Path(entry.uri).name for entry in entries] == ["rec.wav", "rec.wav", "right.wav"]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (cut(type="MixedCut"), "is a MixedCut without one recording"),
        ({"type": "MonoCut", "id": "x", "start": 0, "duration": 1}, "is a MonoCut without one recording"),
        (
            cut(sources=[{"type": "command", "channels": [0], "source": "touch x"}]),
            "source of type 'command'",
        ),
        (
            cut(sources=[{"type": "file", "channels": [0], "source": "http://x/y.wav"}]),
            "read only with --allow-http",
        ),
        (cut(channel=3), r"takes channels \[3\], which no one file of it has"),
        (cut(duration=-1), "lasts -1 s; give seconds"),
        (cut(duration="x"), "is not a cut as Lhotse writes it"),
        (cut(id=3), "has 3 as 'id'"),
    ],
)
def test_a_cut_that_cannot_be_taken_is_named(folder: Path, wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=f"line 2 of .*{complaint}"):
        listed(write(folder / "cuts.jsonl", cut(), wrong))


def test_a_cut_that_changes_its_audio_is_refused(folder: Path) -> None:
    one = cut()
    one["recording"]["transforms"] = [{"name": "Speed", "kwargs": {"factor": 1.1}}]
    with pytest.raises(InputError, match="applies 'Speed' to its recording"):
        listed(write(folder / "cuts.jsonl", one))
    one["recording"]["transforms"] = [{"name": "Resample", "kwargs": {}}]
    assert len(listed(write(folder / "cuts.jsonl", one))) == 1


def write_shar(folder: Path, number: int, names: list[str]) -> Path:
    placeholder = [{"type": "shar", "channels": [0], "source": ""}]
    cuts = [cut(name, placeholder, duration=2.0, supervisions=[supervision(f"say {name}")]) for name in names]
    write(folder / f"cuts.{number:06}.jsonl.gz", *cuts)
    path = folder / f"recording.{number:06}.tar"
    with tarfile.open(path, "w") as tar:
        for name in names:
            for kind, data in ((".flac", name.encode()), (".json", b'{"id": "rec"}')):
                header = tarfile.TarInfo(name + kind)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return path


def test_a_shar_folder_is_read_by_its_cuts(tmp_path: Path) -> None:
    write_shar(tmp_path, 0, ["a.b", "rec/c"])
    write_shar(tmp_path, 1, ["d"])
    (tmp_path / "features.000000.tar").write_bytes(b"not looked at")
    entries = listed(tmp_path)
    assert [entry.recording_id for entry in entries] == ["a.b", "rec/c", "d"]
    assert [entry.duration_s for entry in entries] == [2.0] * 3
    assert said(entries[1]) == {"text": "say rec/c"}
    data = [stores.read_range(entry.uri, entry.byte_offset, entry.byte_size) for entry in entries]
    assert data == [b"a.b", b"rec/c", b"d"]


def test_a_shar_folder_that_is_not_whole_says_so(tmp_path: Path) -> None:
    tar = write_shar(tmp_path, 0, ["a", "b"])
    whole = tar.read_bytes()
    tar.write_bytes(whole[:2048])  # after the first recording and its sidecar
    one, damage = listed(tmp_path)
    assert one.recording_id == "a"
    assert "ends without its end mark" in said(damage)[DAMAGE_KEY]
    tar.unlink()
    with pytest.raises(InputError, match=r"has no 'recording.000000.tar' beside it"):
        listed(tmp_path)
    skipped: Counter[str] = Counter()
    write_shar(tmp_path, 0, ["a", "b"])
    write(tmp_path / "cuts.000000.jsonl.gz", cut("a"), cut("gone"))
    assert [entry.recording_id for entry in listed(tmp_path, skipped=skipped)] == ["a"]
    assert skipped == {"cuts without a recording": 1}
