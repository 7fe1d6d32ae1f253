"""What the names on the pages of the documentation stand for: small checkpoints, clips, made outputs."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from tests.export_outputs import SHARDS, item, made_output, metadata, segment
from tests.head_checkpoints import add_head
from tests.made_languages import make_checkpoint
from tests.snippets import PAGES, ROOT, SNIPPETS
from tests.speaker_outputs import embedded, embeddings_output, utterances
from w2v_ray import demo, stores
from w2v_ray.rttm import Turn, rttm_line

MODEL = "facebook/wav2vec2-base-960h"


def place_checkpoints(folder: Path) -> None:
    """The demo's checkpoint under the names of the hub that pages use, and one with a language model."""
    for name in (MODEL, "facebook/wav2vec2-base"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(demo.CHECKPOINT)
    place_with_language_model(folder)


def place_with_language_model(folder: Path) -> None:
    from w2v_ray import AutoModelForCTC, AutoProcessor, Wav2Vec2ProcessorWithLM
    from w2v_ray.text import build_ctcdecoder

    processor = AutoProcessor.from_pretrained(demo.CHECKPOINT)
    place = folder / "patrickvonplaten" / "wav2vec2-base-100h-with-lm"
    decoder = build_ctcdecoder(labels_of(processor), str(demo.LANGUAGE_MODEL))
    Wav2Vec2ProcessorWithLM(processor.feature_extractor, processor.tokenizer, decoder).save_pretrained(place)
    AutoModelForCTC.from_pretrained(demo.CHECKPOINT).save_pretrained(place)


def labels_of(processor: Any) -> list[str]:
    vocabulary = processor.tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def place_outputs(page: str, folder: Path) -> None:
    """What jobs of the page would have written."""
    row = {"start_s": 0.0, "end_s": 9.0, "duration_s": 9.0}
    if page == "speakers.md":
        names = ["84-121123-0000", "84-121123-0001", "1272-128104-0000"]
        vectors = utterances([0, 0, 1], noise=0.02)
        rows = {f"/in/{n}.flac": [embedded(0, 2, v)] for n, v in zip(names, vectors, strict=True)}
        embeddings_output(folder / "out", rows)
        (folder / "trials.txt").write_text(f"1 {names[0]} {names[1]}\n0 {names[0]} {names[2]}\n")
    elif page == "frames.md":
        label = row | {"label": "yes", "score": 0.9, "labels": [{"label": "yes", "score": 0.9}]}
        made_output(folder / "out", [[item("/in/a.wav", [label])]], table="labels")
        turn = {"label": "ada", "start_s": 1.0, "end_s": 5.0, "score": 0.75}
        turns = row | {"turns": [turn], "num_frames": 449, "seconds_per_frame": 0.02}
        types = {"activity": pa.list_(pa.list_(pa.float16(), 1))}
        made_output(folder / "turns", [[item("/in/a.wav", [turns])]], table="frames", types=types)
        (folder / "labels.csv").write_text("id,label\na,yes\n")
        (folder / "reference.rttm").write_text(rttm_line("a", Turn("x", 1, 5)))
    elif page == "decoding.md":
        aligned = [row | {"text": text, "loss_per_label": loss} for text, loss in [("YES", 0.1), ("NO", 2.0)]]
        made = [[item(f"/in/{n}.wav", [values])] for n, values in enumerate(aligned)]
        made_output(folder / "out", made, table="alignments")
    elif page == "report.md":
        types = {"embedding": pa.list_(pa.float32(), 16)}
        vectors = utterances([0, 1, 1], noise=0.02).tolist()
        shard = [
            item(
                f"/in/{n}.wav",
                [segment("so it is", 0, 9) | {"embedding": vector}],
                metadata=metadata(text="so"),
            )
            for n, vector in enumerate(vectors)
        ]
        made_output(folder / "out", [shard], also=("embed",), types=types)
        (folder / "said.csv").write_text("recording_id,text\n/in/0.wav,so it was\n")
        speakers = {"recording_id": [f"/in/{n}.wav" for n in range(3)], "speaker": ["a", "b", "b"]}
        pq.write_table(pa.table(speakers | {"channel": pa.nulls(3, pa.int32())}), folder / "speakers.parquet")
    else:
        made_output(folder / "out", SHARDS)
        (folder / "OUT").symlink_to("out")


def place_files(folder: Path) -> None:
    """Files that the page names."""
    for name in ("pipelines", "w2v_ray"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "my_archive").symlink_to(demo.ARCHIVE)
    for name in ("a.flac", "talk.flac"):
        shutil.copy(demo.ARCHIVE / "00_0b57a6ed.flac", folder / name)
    for name in ("model.arpa", "words.arpa", "lm.arpa"):
        shutil.copy(demo.LANGUAGE_MODEL, folder / name)
    prose = " ".join(path.read_text(encoding="utf-8") for path in PAGES)
    (folder / "corpus.txt").write_text(re.sub("[^a-z.]+", " ", prose).replace(".", "\n"))
    (folder / "more.txt.gz").write_bytes(gzip.compress(b"some more words\n"))
    stored = "inputs: [s3://bucket/archive]\noutput: s3://bucket/out\nmodel: my/model\n"
    for name in ("job.yaml", "nightly.yaml"):
        (folder / name).write_text(stored)


def place_everything(folder: Path, tiny_checkpoint: Path) -> None:
    """All inputs and checkpoints that jobs of the pages name."""
    from w2v_ray import Wav2Vec2ForCTC
    from w2v_ray.models.config import Wav2Vec2Config

    place_files(folder)
    for name in ("archive", "calls", "recordings", "meetings", "a"):
        (folder / name).symlink_to(demo.ARCHIVE)
    (folder / "b.tar").symlink_to(demo.INPUTS[1])
    lines = (demo.ARCHIVE / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) | {"language": "fra"} for line in lines]
    for entry in entries:
        entry["audio_filepath"] = str(demo.ARCHIVE / entry["audio_filepath"])
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    (detector,) = [snippet.text for snippet in SNIPPETS if snippet.text.startswith("# energy_vad.py")]
    (folder / "energy_vad.py").write_text(detector, encoding="utf-8")
    label = {"start_s": 0.0, "end_s": 9.0, "duration_s": 9.0, "label": "eng", "score": 0.9}
    made_output(folder / "out-languages", [[item("/in/a.wav", [label])]], table="labels")

    shutil.copy(demo.LANGUAGE_MODEL, folder / "other.arpa")
    (folder / "facebook").mkdir()
    for name in (MODEL, "checkpoint", "ctc"):
        (folder / name).symlink_to(demo.CHECKPOINT)
    make_checkpoint(folder / "facebook" / "mms-1b-all")
    heads = {"embed": ["speakers", "speaker-checkpoint"], "frames": ["diarization-checkpoint", "diarizer"]}
    heads["classify"] = ["emotions", "keywords"]
    for task, names in heads.items():
        add_head(demo.CHECKPOINT, folder / f"{task}-head", task)
        for name in names:
            (folder / name).symlink_to(folder / f"{task}-head")
    languages = {"id2label": {0: "fra", 1: "eng", 2: "deu"}}
    add_head(demo.CHECKPOINT, folder / "facebook" / "mms-lid-126", "classify", seed=2, **languages)
    (folder / "language-checkpoint").symlink_to(folder / "facebook" / "mms-lid-126")
    deep = folder / "facebook" / "wav2vec2-base"
    shutil.copytree(tiny_checkpoint, deep)
    config = Wav2Vec2Config.from_pretrained(tiny_checkpoint, num_hidden_layers=12)
    Wav2Vec2ForCTC(config).save_pretrained(deep)
    place_with_language_model(folder)


def given(page: str) -> dict[str, Any]:
    """Variables that the page does not set."""
    if page not in ("decoding.md", "models.md"):
        return {}
    from w2v_ray import AutoModelForCTC, AutoProcessor

    samples, _ = soundfile.read(demo.ARCHIVE / "00_0b57a6ed.flac", dtype="float32")
    if page == "models.md":
        return {"samples": samples}
    processor = AutoProcessor.from_pretrained(demo.CHECKPOINT)
    model = AutoModelForCTC.from_pretrained(demo.CHECKPOINT)
    inputs = processor(samples, sampling_rate=16_000, return_tensors="pt")
    logits = model(**inputs).logits.detach()[0]
    return {
        "samples": samples,
        "labels": labels_of(processor),
        "logits": logits.numpy(),
        "logits_list": [logits.numpy()] * 2,
        "log_probs": logits.log_softmax(-1).numpy(),
    }


@contextmanager
def stored_bucket() -> Iterator[None]:
    """The bucket of the pages, with an archive and an output."""
    import fsspec

    system = fsspec.filesystem("s3")
    system.mkdir("bucket")
    stores.publish("s3://bucket/archive/a.flac", (demo.ARCHIVE / "00_0b57a6ed.flac").read_bytes())
    stores.publish("s3://bucket/b.mp3", (demo.ARCHIVE / "11_6f689791.mp3").read_bytes())
    yield
    system.rm("bucket", recursive=True)
