"""Planning recordings of several languages, and what of a checkpoint's languages is seen before a job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.made_languages import LETTERS, make_checkpoint
from tests.made_outputs import publish, silence
from w2v_ray.errors import CheckpointError, ConfigError, OutputError
from w2v_ray.languages import check_language, check_languages, known_languages
from w2v_ray.plan import Plan, make_plan
from w2v_ray.schema import LANGUAGE_KEY
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

LANGUAGES = ["fra", "deu", "fra", None, "eng", "deu", "fra", "eng", None, "deu"]


def write_inputs(folder: Path, languages: list[str | None] = LANGUAGES, *, prefix: str = "") -> str:
    """Recordings of 20 s in turn of these languages, in a manifest."""
    folder.mkdir(exist_ok=True)
    lines = []
    for number, language in enumerate(languages):
        name = f"{prefix}{number:02}.wav"
        if not (folder / name).exists():
            (folder / name).write_bytes(silence(20))
        lines.append({"audio_filepath": name, "id": name, "duration": 20.0})
        if language is not None:
            lines[-1]["lang"] = language
    manifest = folder / f"{prefix}manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    return str(manifest)


def plan(inputs: str, output: Path, **options: Any) -> Plan:
    settings = {name: options.pop(name) for name in ("annotate", "on_change") if name in options}
    job = {"model": "m", "shard_seconds": 50.0, "language_key": "lang"} | options
    return make_plan([inputs], str(output), shard_seconds=50, job=job, **settings)


def languages_of(planned: Plan, key: str = "lang") -> list[list[str | None]]:
    """Those of the items of each pending shard."""
    return [
        [json.loads(text or "{}").get(key) for text in table["metadata"].to_pylist()]
        for table in planned.pending_tables()
    ]


def test_a_shard_is_of_one_language_and_what_is_pending_goes_by_language(tmp_path: Path) -> None:
    planned = plan(write_inputs(tmp_path / "in"), tmp_path / "out")
    expected = [[None] * 2, ["deu"] * 2, ["deu"], ["eng"] * 2, ["fra"] * 2, ["fra"]]
    assert languages_of(planned) == expected
    tables = list(planned.pending_tables())
    assert [table["shard_id"][0].as_py() for table in tables] == list(planned.pending)
    # Within a language the order is that of the inputs.
    names = [name for table in tables for name in table["recording_id"].to_pylist()]
    assert names == [f"{n:02}.wav" for n in (3, 8, 1, 5, 9, 4, 7, 0, 2, 6)]


def test_later_recordings_join_those_of_their_language(tmp_path: Path) -> None:
    plan(write_inputs(tmp_path / "in", ["fra", "deu"]), tmp_path / "out")
    planned = plan(write_inputs(tmp_path / "in", ["deu", "eng", "fra"], prefix="new"), tmp_path / "out")
    assert languages_of(planned) == [["deu"], ["deu"], ["eng"], ["fra"], ["fra"]]
    publish(planned, planned.pending[:2])
    planned = plan(write_inputs(tmp_path / "in", ["fra", "deu"]), tmp_path / "out")
    assert languages_of(planned) == [["eng"], ["fra"], ["fra"]]


def test_partitions_and_languages_go_together(tmp_path: Path) -> None:
    inputs = Path(write_inputs(tmp_path / "in", ["fra", "deu", "fra", "deu"]))
    rows = [json.loads(line) | {"kind": n // 2} for n, line in enumerate(inputs.read_text().splitlines())]
    inputs.write_text("\n".join(map(json.dumps, rows)))
    planned = plan(str(inputs), tmp_path / "out", partition_by="kind")
    found = [
        [(json.loads(text)["kind"], json.loads(text)["lang"]) for text in table["metadata"].to_pylist()]
        for table in planned.pending_tables()
    ]
    assert found == [[(0, "deu")], [(1, "deu")], [(0, "fra")], [(1, "fra")]]


def test_a_job_of_one_language_is_planned_as_ever(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in")
    planned = plan(inputs, tmp_path / "out", language_key=None)
    assert [len(shard) for shard in languages_of(planned)] == [2] * 5


def test_a_language_that_has_changed_is_a_change(tmp_path: Path) -> None:
    plan(write_inputs(tmp_path / "in", ["fra", "deu"]), tmp_path / "out")
    changed = write_inputs(tmp_path / "in", ["fra", "eng"])
    with pytest.raises(OutputError, match=r"01\.wav' has changed .* what the manifest says of it"):
        plan(changed, tmp_path / "out")
    planned = plan(changed, tmp_path / "out", on_change="new")
    assert (planned.num_changed, languages_of(planned)) == (1, [["eng"], ["fra"]])


def test_what_is_known_from_elsewhere_joins_the_metadata(tmp_path: Path) -> None:
    found = {"00.wav": "fra", "01.wav": "deu"}

    def annotate(recording_id: str, metadata: str | None) -> str:
        values = json.loads(metadata or "{}")
        if recording_id in found:
            values[LANGUAGE_KEY] = found[recording_id]
        return json.dumps(values)

    inputs = write_inputs(tmp_path / "in", [None, None, None])
    options = {"annotate": annotate, "language_key": None, "languages_from": "of a job"}
    planned = plan(inputs, tmp_path / "out", **options)
    assert languages_of(planned, LANGUAGE_KEY) == [[None], ["deu"], ["fra"]]
    assert plan(inputs, tmp_path / "out", **options).num_new == 0
    found["02.wav"] = "fra"  # it was found since
    with pytest.raises(OutputError, match=r"02\.wav' has changed"):
        plan(inputs, tmp_path / "out", **options)
    planned = plan(inputs, tmp_path / "out", on_change="new", **options)
    assert languages_of(planned, LANGUAGE_KEY) == [["deu"], ["fra"], ["fra"]]


# ---- what of a checkpoint is seen before a job starts


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "mms", pickled=("deu",))


def tokenizer_of(checkpoint: Path) -> Wav2Vec2CTCTokenizer:
    return Wav2Vec2CTCTokenizer.from_pretrained(checkpoint)


def known_of(checkpoint: Path) -> tuple[str, ...] | None:
    return known_languages(str(checkpoint), tokenizer_of(checkpoint))


def test_known_languages_have_a_vocabulary_and_an_adapter(checkpoint: Path) -> None:
    assert known_of(checkpoint) == tuple(sorted(LETTERS))
    (checkpoint / "adapter.fra.safetensors").unlink()
    (checkpoint / "adapter.eng.safetensors").rename(checkpoint / "adapter.a.b.safetensors")
    assert known_of(checkpoint) == ("deu", "eng", "nld")  # English is in the weights
    vocabulary = json.loads((checkpoint / "vocab.json").read_text())
    (checkpoint / "vocab.json").write_text(json.dumps(vocabulary["fra"]))
    (checkpoint / "tokenizer_config.json").write_text("{}")
    assert known_of(checkpoint) == ("a.b", "deu", "nld")  # one vocabulary for all
    for path in checkpoint.glob("adapter.*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"has no file adapter\.LANGUAGE\.safetensors or \.bin; fetch"):
        known_of(checkpoint)


def test_a_checkpoint_without_adapters_has_one_language(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json has no adapter_attn_dim.*leave the language"):
        known_of(tiny_checkpoint)


def test_an_adapter_of_another_vocabulary_is_refused(checkpoint: Path) -> None:
    check_languages(str(checkpoint), tokenizer_of(checkpoint), tuple(LETTERS))
    path = checkpoint / "adapter.fra.safetensors"
    path.write_bytes((checkpoint / "adapter.eng.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"^the adapter of language 'fra' has 14 rows .* 16 tokens"):
        check_languages(str(checkpoint), tokenizer_of(checkpoint), tuple(LETTERS))
    check_languages(str(checkpoint), tokenizer_of(checkpoint), ("eng", "nld"))


@pytest.mark.parametrize("spoil", ["headless", "cut", "empty", "flat"])
def test_a_damaged_adapter_is_named(checkpoint: Path, spoil: str) -> None:
    path = checkpoint / "adapter.fra.safetensors"
    weights = load_file(path)
    if spoil == "headless":
        save_file({name: w for name, w in weights.items() if not name.startswith("lm_head")}, path)
    elif spoil == "flat":
        save_file(weights | {"lm_head.weight": weights["lm_head.bias"][0].clone()}, path)
    else:
        path.write_bytes(path.read_bytes()[: 100 if spoil == "cut" else 0])
    with pytest.raises(CheckpointError, match=r"adapter\.fra\.safetensors is not an adapter with lm_head"):
        check_languages(str(checkpoint), tokenizer_of(checkpoint), ("fra",))


def test_the_one_language_of_a_job(checkpoint: Path) -> None:
    known, model = known_of(checkpoint), str(checkpoint)
    fields = [check_language(language, known, model=model) for language in ("fra", "deu", "fra")]
    assert fields[0] == fields[2] != fields[1]
    assert fields[0]["adapter"].startswith("sha256:")
    (checkpoint / "adapter.eng.safetensors").unlink()
    assert check_language("eng", known, model=model) == {}  # the weights are in the fingerprint as they are
    with pytest.raises(ConfigError, match=r"^language is 'spa', expected deu, eng, fra, nld; choose one"):
        check_language("spa", known, model=model)
    with pytest.raises(ConfigError, match=r"^language is 'spa', expected one that the checkpoint"):
        check_language("spa", None, model=model)


def test_neither_torch_nor_ray_is_loaded() -> None:
    code = "import sys, w2v_ray.languages; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
