"""Planning recordings of several languages, and what of a checkpoint's languages is seen before a job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file

from tests.made_languages import LETTERS, make_checkpoint
from tests.made_outputs import publish, silence
from w2v_ray.errors import CheckpointError, ConfigError, InputError, OutputError
from w2v_ray.languages import check_adapters, check_languages, claim_adapters, known_languages
from w2v_ray.output import SpokenLanguages, spoken_languages_fingerprint
from w2v_ray.plan import Plan, make_plan
from w2v_ray.plan.records import read_job
from w2v_ray.schema import ERROR, ITEM, LABEL, LANGUAGE_ERROR_KEY, LANGUAGE_KEY
from w2v_ray.stages.write_parquet import WriteParquet, WriteParquetConfig
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
    check_adapters(str(checkpoint), tokenizer_of(checkpoint), tuple(LETTERS))
    path = checkpoint / "adapter.fra.safetensors"
    path.write_bytes((checkpoint / "adapter.eng.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"^the adapter of language 'fra' has 14 rows .* 16 tokens"):
        check_adapters(str(checkpoint), tokenizer_of(checkpoint), tuple(LETTERS))
    check_adapters(str(checkpoint), tokenizer_of(checkpoint), ("eng", "nld"))


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
        check_adapters(str(checkpoint), tokenizer_of(checkpoint), ("fra",))


def checked(checkpoint: Path, language: str | None = None, *, is_one: bool = False) -> dict[str, Any]:
    return check_languages(str(checkpoint), tokenizer_of(checkpoint), language=language, is_one=is_one)


def test_the_one_language_of_a_job(checkpoint: Path) -> None:
    fields = [checked(checkpoint, language) for language in ("fra", "deu", "fra")]
    assert fields[0] == fields[2] != fields[1]
    assert fields[0]["adapter"].startswith("sha256:")
    (checkpoint / "adapter.eng.safetensors").unlink()
    assert checked(checkpoint, "eng") == {}  # the weights are in the fingerprint as they are
    with pytest.raises(ConfigError, match=r"^language is 'spa', expected deu, eng, fra, nld; choose one"):
        checked(checkpoint, "spa")


def test_the_languages_of_a_job_are_all_that_there_are(checkpoint: Path) -> None:
    assert checked(checkpoint) == {}
    path = checkpoint / "adapter.fra.safetensors"
    path.write_bytes((checkpoint / "adapter.eng.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"^the adapter of language 'fra' has 14 rows"):
        checked(checkpoint)
    assert checked(checkpoint, "eng", is_one=True).keys() == {"adapter"}  # which is no concern of this job


def test_rows_of_one_language_are_all_made_with_one_adapter(checkpoint: Path, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", ["fra", "fra", "fra", "nld", "spa"])
    output, model = tmp_path / "out", str(checkpoint)
    job = {"language_key": "lang", "shard_seconds": 50.0}
    planned = plan(inputs, output)
    claim_adapters(planned, job, model=model)
    noted = sorted(path.name for path in (output / "_plan").glob("adapter-*"))
    assert noted == ["adapter-fra.txt", "adapter-nld.txt"]
    changed = checkpoint / "adapter.fra.safetensors"
    before = changed.read_bytes()
    weights = load_file(changed)
    save_file(weights | {"lm_head.bias": weights["lm_head.bias"] + 1}, changed)
    claim_adapters(plan(inputs, output), job, model=model)  # no row of it is there yet
    publish(plan(inputs, output), planned.pending[:1])
    claim_adapters(plan(inputs, output), job, model=model)
    changed.write_bytes(before)
    with pytest.raises(OutputError, match=r"has rows of language 'fra' by another adapter \(sha256:\w+\)"):
        claim_adapters(plan(inputs, output), job, model=model)
    publish(plan(inputs, output))
    claim_adapters(plan(inputs, output), job, model=model)  # nothing is to be done with it
    claim_adapters(planned, {"language": "fra"}, model=model)  # which is in the job's own fingerprint


# ---- what a job that identifies languages has found


def labelled(folder: Path, labels: dict[str, list[tuple[float, dict[str, float]]]], **job: Any) -> str:
    """An output with rows of so many seconds and such scores; a recording without rows is rejected."""
    inputs = write_inputs(folder / "lid-in", [None] * len(labels))
    settings = {"model": "lid", "shard_seconds": 50.0, "task": "classify"} | job
    planned = make_plan([inputs], str(folder / "lid"), shard_seconds=50, job=settings)
    more = [ITEM.field(name) for name in ("byte_size", "planned_s", "generation")]
    schema = pa.schema([*LABEL, *more, pa.field("error", ERROR)])
    write = WriteParquet(
        WriteParquetConfig(output=planned.output, job_fingerprint=planned.job_fingerprint, table="labels")
    )
    error = {"stage": "decode_audio", "error_class": "DecodeError", "message": "it is noise"}
    for items in planned.pending_tables():
        rows: list[dict[str, Any]] = []
        for item in items.to_pylist():
            found = labels[item["recording_id"]]
            for index, (seconds, scores) in enumerate(found):
                row = item | {"segment_index": index, "segment_id": f"{item['recording_id']}@{index}"}
                row |= {"start_s": float(index), "end_s": index + 1.0, "duration_s": seconds, "error": None}
                row["labels"] = [{"label": name, "score": score} for name, score in scores.items()]
                rows.append(row)
            if not found:
                rows.append(item | {"error": error})
        write(pa.Table.from_pylist(rows, schema))
    return planned.output


def test_the_label_with_most_seconds_of_score_is_the_language(tmp_path: Path) -> None:
    output = labelled(
        tmp_path,
        {
            "00.wav": [(10.0, {"fra": 0.6, "deu": 0.4}), (2.0, {"deu": 1.0}), (3.0, {"eng": 1.0})],
            "01.wav": [(1.0, {"fra": 0.9}), (1.0, {"deu": 0.9})],
            "02.wav": [(1.0, {}), (5.0, {"eng": 0.1})],
            "03.wav": [(4.0, {})],
            "04.wav": [],
        },
    )
    found = SpokenLanguages(output)
    assert found.languages == {"00.wav": "fra", "01.wav": "deu", "02.wav": "eng"}
    assert json.loads(found.annotate("00.wav", None)) == {LANGUAGE_KEY: "fra"}
    assert json.loads(found.annotate("00.wav", '{"a": 1}')) == {"a": 1, LANGUAGE_KEY: "fra"}
    assert json.loads(found.annotate("00.wav", '{"lang": "deu"}', key="lang")) == {"lang": "deu"}
    assert json.loads(found.annotate("00.wav", '{"lang": null}', key="lang"))[LANGUAGE_KEY] == "fra"
    reasons = [json.loads(found.annotate(f"0{n}.wav", None))[LANGUAGE_ERROR_KEY] for n in (3, 4, 5)]
    start = f"languages_from {output!r} tells no language: "
    assert [reason.removeprefix(start).split(";")[0] for reason in reasons] == [
        "no label reached the threshold of that job",
        "it was rejected there (DecodeError: it is noise)",
        "it has no row of this recording",
    ]
    assert all(reason.count(";") == 1 and reason.endswith("again with --on-change new") for reason in reasons)


def test_only_an_output_with_labels_tells_languages(tmp_path: Path) -> None:
    output = labelled(tmp_path, {"00.wav": [(1.0, {"fra": 1.0})]})
    assert spoken_languages_fingerprint(output) == read_job(output)[0]
    plan(write_inputs(tmp_path / "in"), tmp_path / "texts")
    for read in (spoken_languages_fingerprint, SpokenLanguages):
        with pytest.raises(OutputError, match=r"languages_from is .*texts', which holds transcripts; name"):
            read(str(tmp_path / "texts"))
        with pytest.raises(OutputError, match=r"none' is not the output of a job"):
            read(str(tmp_path / "none"))


def test_neither_torch_nor_ray_is_loaded() -> None:
    code = "import sys, w2v_ray.languages; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_key_that_nothing_has_is_refused(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", ["fra"])
    message = (
        r"^language_key is 'tongue', which no entry .* \(their keys: .*lang.*\).* leave language_key out"
    )
    with pytest.raises(InputError, match=message):
        plan(inputs, tmp_path / "out", language_key="tongue")
    assert plan(inputs, tmp_path / "out", language_key="tongue", language="fra").num_new == 1
