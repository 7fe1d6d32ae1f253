"""The whole flow on a real Ray: what goes in comes out once, whatever is done twice, killed or broken."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
import soundfile
import torch

from tests.made_outputs import demo_job, rows_of
from w2v_ray import AutoModelForCTC, AutoProcessor, ConfigError, JobConfig, OutputError, demo, run, schema
from w2v_ray.config import RedecodeConfig
from w2v_ray.execution import RemoteBook, Run
from w2v_ray.job import RunSummary
from w2v_ray.pipeline import redecode
from w2v_ray.plan import make_plan
from w2v_ray.pools import Machines, Pools
from w2v_ray.progress import Progress
from w2v_ray.quarantine import TrackedStage
from w2v_ray.run_record import newest_run

MODEL = str(demo.CHECKPOINT)


def without_shards(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name != "shard_id"} for row in rows]


def words_of(rows: list[dict[str, object]]) -> list[str]:
    return " ".join(str(row["text"]) for row in rows).split()


def connected_speech(seconds: float) -> np.ndarray:
    """Real words of the demo's archive end to end, with half a second of quiet between utterances."""
    pieces: list[np.ndarray] = []
    rng = np.random.default_rng(3)
    files = [f for f in sorted(demo.ARCHIVE.iterdir()) if f.suffix in (".flac", ".wav", ".mp3")]
    while sum(map(len, pieces)) < seconds * schema.SAMPLE_RATE_HZ:
        samples, rate = soundfile.read(files[int(rng.integers(len(files)))], dtype="float32")
        assert rate == schema.SAMPLE_RATE_HZ
        pieces += [samples, 1e-4 * rng.standard_normal(8000).astype(np.float32)]
    return np.concatenate(pieces)[: int(seconds * schema.SAMPLE_RATE_HZ)]


def test_the_demo_archive_becomes_a_table(demo_run: tuple[Path, list[Progress]]) -> None:
    output, seen = demo_run
    files = sorted((output / "transcripts").iterdir())
    assert len(files) >= 3  # 97 s in shards of 30
    for file in files:
        written = pq.read_schema(file)
        assert written.names == schema.TRANSCRIPT.names
        assert written.types == schema.TRANSCRIPT.types
    rows = rows_of(output)
    assert len({row["segment_id"] for row in rows}) == len(rows) == 24
    for row in rows:
        assert f"part-{row['shard_id']}.parquet" in {file.name for file in files}
        words = row["words"]
        assert isinstance(words, list)
        assert [word["word"] for word in words] == str(row["text"]).split()
        times = [t for word in words for t in (word["start_s"], word["end_s"])]
        assert times == sorted(times)
        assert all(0 <= t <= row["end_s"] + 0.03 for t in times)
        assert all(0 <= word["confidence"] <= 1 for word in words)
    codecs = {row["codec"] for row in rows}
    assert "FLAC/PCM_16" in codecs
    assert len(codecs) == 5
    assert seen[-1].done_s == pytest.approx(seen[-1].planned_s)
    assert seen[-1].num_shards_done == seen[-1].num_shards == len(files)


def test_the_demo_tells_speakers_and_words_apart(
    demo_run: tuple[Path, list[Progress]], tmp_path: Path
) -> None:
    found = demo.speakers(str(demo_run[0]))
    assert len(found) == 24
    right = several = 0
    for row, (name, vector) in enumerate(found):
        others = [(float(vector @ other), who) for at, (who, other) in enumerate(found) if at != row]
        if name in [who for _, who in others]:
            several += 1
            right += max(others)[1] == name
    assert (right, several) == (pytest.approx(8, abs=1), 9)
    words = JobConfig(
        task="classify",
        inputs=(str(demo.WORDS),),
        output=demo.keywords(str(tmp_path)),
        model=str(demo.keyword_checkpoint()),
    )
    assert run(words).num_rejects == 0
    named = demo.named_words(str(tmp_path))
    assert len(named) == 30
    assert sum(said == label for said, label, _ in named) >= 26


def test_most_words_of_unseen_speakers_are_recognised(demo_run: tuple[Path, list[Progress]]) -> None:
    from w2v_ray.metrics import word_error_rate

    pairs = [(said, recognised) for said, recognised, _ in demo.results(str(demo_run[0]))]
    assert word_error_rate(pairs) < 0.3


def test_a_second_run_does_nothing_and_a_lost_file_alone_is_done_again(
    demo_run: tuple[Path, list[Progress]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(demo_run[0], output)
    job = replace(demo_job(), output=str(output))
    before = rows_of(output)
    assert run(job).num_rows == 0
    files = sorted((output / "transcripts").iterdir())
    files[1].unlink()
    times = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    summary = run(job)
    assert summary.num_shards_before == len(files) - 1
    assert 0 < summary.num_rows < 24
    assert rows_of(output) == before
    assert {file: file.stat().st_mtime_ns for file in times} == times


def test_another_job_in_the_same_output_is_refused(demo_run: tuple[Path, list[Progress]]) -> None:
    with pytest.raises(OutputError, match="max_segment_seconds"):
        run(
            JobConfig(
                inputs=demo.INPUTS,
                output=str(demo_run[0]),
                model=MODEL,
                shard_seconds=30,
                max_segment_seconds=9,
                keep_log_probs=8,
            )
        )


@pytest.fixture(scope="module")
def redecoded(
    demo_run: tuple[Path, list[Progress]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RedecodeConfig, RunSummary, list[Progress]]:
    """The demo's archive decoded again with a language model, into an output that no test may change."""
    job = RedecodeConfig(
        source=demo_run[0].name,
        output=str(tmp_path_factory.mktemp("redecoded") / "again"),
        lm=str(demo.LANGUAGE_MODEL),
        characters=True,
    )
    seen: list[Progress] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(demo_run[0].parent)  # workers are in the folder in which their Ray was started
        summary = redecode(job, on_progress=seen.append)
    return replace(job, source=str(demo_run[0])), summary, seen


def test_decoding_again_gives_what_a_run_with_the_language_model_gives(
    demo_run: tuple[Path, list[Progress]],
    redecoded: tuple[RedecodeConfig, RunSummary, list[Progress]],
    tmp_path: Path,
) -> None:
    from w2v_ray.metrics import word_error_rate

    job, summary, seen = redecoded
    output, lm = tmp_path / "again", str(demo.LANGUAGE_MODEL)
    shutil.copytree(job.output, output)
    rows, greedy = rows_of(output), rows_of(demo_run[0])
    assert (summary.num_rows, summary.num_items, summary.num_rejects) == (24, 24, 0)
    assert seen[-1].num_shards_done == summary.num_shards == 5
    record = newest_run(str(output))
    assert record is not None
    assert (record["command"], record["state"], record["totals"]["num_rows"]) == ("redecode", "done", 24)
    assert list(record["stages"]) == ["read_log_probs", "decode_text", "write_parquet"]
    assert record["stages"]["decode_text"]["frames"] == sum(row["num_frames"] for row in rows)
    assert record["inputs"] == [{"namespace": "file", "name": str(demo_run[0])}]
    same = ("shard_id", "segment_id", "start_s", "end_s", "metadata", "num_frames", "codec")
    assert [[row[n] for n in same] for row in rows] == [[row[n] for n in same] for row in greedy]
    assert all(row["lm_score"] is not None and row["characters"] for row in rows)
    assert all(row["lm_score"] is None and row["characters"] is None for row in greedy)
    rates = [
        word_error_rate([(said, text) for said, text, _ in demo.results(str(place))])
        for place in (output, demo_run[0])
    ]
    assert rates[0] < rates[1]

    direct = tmp_path / "direct"
    run(
        JobConfig(
            inputs=demo.INPUTS, output=str(direct), model=MODEL, shard_seconds=30, lm=lm, characters=True
        )
    )
    assert [row["text"] for row in rows_of(direct)] == [row["text"] for row in rows]

    files = sorted((output / "transcripts").iterdir())
    files[0].unlink()
    job = replace(job, output=str(output))
    assert redecode(job).num_shards_before == 4  # a lost file alone is done again
    assert rows_of(output) == rows
    assert redecode(job).num_rows == 0


def test_decoding_again_is_a_job_of_its_own(
    redecoded: tuple[RedecodeConfig, RunSummary, list[Progress]], tmp_path: Path
) -> None:
    output, moved = tmp_path / "again", tmp_path / "moved.arpa"
    shutil.copytree(redecoded[0].output, output)
    shutil.copy(demo.LANGUAGE_MODEL, moved)
    job = replace(redecoded[0], output=str(output), lm=str(moved))
    assert redecode(job).num_rows == 0
    moved.write_text(moved.read_text().replace("YES", "YEA"))
    with pytest.raises(OutputError, match=r"belongs to a job with other settings \(lm 'sha256:"):
        redecode(job)
    with pytest.raises(OutputError, match=r"alpha None -> 0\.7"):
        redecode(replace(job, alpha=0.7))
    with pytest.raises(OutputError, match="is the source itself"):
        redecode(RedecodeConfig(source=job.source, output=job.source))
    with pytest.raises(OutputError, match="holds no log-probabilities; name the output of a job"):
        redecode(RedecodeConfig(source=str(output), output=str(tmp_path / "third")))


def test_wav2vec2_bert_gives_what_the_model_gives_alone(
    ray_session: None, tiny_bert_checkpoint: Path, tmp_path: Path
) -> None:
    files = sorted(demo.ARCHIVE.glob("*.flac"))
    inputs = tuple(map(str, files))
    run(JobConfig(inputs=inputs, output=str(tmp_path / "out"), model=str(tiny_bert_checkpoint)))
    rows = {str(row["uri"]): row for row in rows_of(tmp_path / "out")}
    model = AutoModelForCTC.from_pretrained(tiny_bert_checkpoint)
    processor = AutoProcessor.from_pretrained(tiny_bert_checkpoint)
    for file in inputs:
        samples, rate = soundfile.read(file, dtype="float32")
        features = processor(samples, sampling_rate=rate, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**features).logits[0, : int(features["attention_mask"].sum())]
        # Of the last frame half may be padding: such a frame is none.
        assert rows[file]["text"] == processor.decode(logits.argmax(-1).tolist()), file
    assert any(row["text"] for row in rows.values())
    for row in rows.values():
        assert abs(float(str(row["num_frames"])) * 0.02 - float(str(row["duration_s"]))) < 0.05


def test_new_files_are_planned_and_old_ones_left(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # workers are in the folder in which their Ray was started
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    first, second, *_ = sorted(demo.ARCHIVE.glob("*.flac"))
    shutil.copy(first, folder)
    job = JobConfig(inputs=("in",), output="out", model=MODEL)
    assert run(job).num_rows == 1
    (old,) = rows_of(output)
    shutil.copy(second, folder)
    summary = run(job)
    assert (summary.num_rows, summary.num_shards_before, summary.num_shards) == (1, 1, 2)
    assert {row["shard_id"] == old["shard_id"]: Path(row["uri"]).name for row in rows_of(output)} == {
        True: first.name,
        False: second.name,
    }


@pytest.mark.slow
def test_cuts_of_a_long_recording_lose_and_double_nothing(ray_session: None, tmp_path: Path) -> None:
    """A recording of many shards gives the words that its pieces give as files of their own."""
    speech = connected_speech(260)
    long = tmp_path / "long"
    long.mkdir()
    soundfile.write(long / "day.flac", speech, schema.SAMPLE_RATE_HZ)
    run(JobConfig(inputs=(str(long),), output=str(tmp_path / "whole"), model=MODEL, shard_seconds=60))
    rows = rows_of(tmp_path / "whole")
    assert len({row["shard_id"] for row in rows}) == 5
    edges = [(float(str(row["start_s"])), float(str(row["end_s"]))) for row in rows]
    assert edges[0][0] == 0
    assert edges[-1][1] == pytest.approx(260)
    for (_, end), (start, _) in pairwise(edges):
        assert start == pytest.approx(end, abs=1e-6)  # gap-free and without overlap

    pieces = tmp_path / "pieces"
    pieces.mkdir()
    shards = list(dict.fromkeys(row["shard_id"] for row in rows))
    for index, shard in enumerate(shards):
        own = [edge for edge, row in zip(edges, rows, strict=True) if row["shard_id"] == shard]
        start, end = (round(t * schema.SAMPLE_RATE_HZ) for t in (own[0][0], own[-1][1]))
        soundfile.write(pieces / f"{index}.flac", speech[start:end], schema.SAMPLE_RATE_HZ)
    run(JobConfig(inputs=(str(pieces),), output=str(tmp_path / "apart"), model=MODEL, shard_seconds=100))
    assert words_of(rows) == words_of(rows_of(tmp_path / "apart"))
    assert len(words_of(rows)) > 100


@pytest.mark.slow
def test_every_file_of_the_real_collection_has_one_outcome(
    shared_data: Path, ray_session: None, tmp_path: Path
) -> None:
    folders = [shared_data / name for name in ("libri", "misc/audio", "misc/derived", "misc/broken")]
    files = {
        str(file)
        for folder in folders
        for file in folder.rglob("*")
        if file.is_file() and file.suffix not in (".csv", ".TXT", ".txt", ".md")
    }
    listing = tmp_path / "all.txt"
    listing.write_text("".join(f"{file}\n" for file in sorted(files)))
    output = tmp_path / "out"
    summary = run(JobConfig(inputs=(str(listing),), output=str(output), model=MODEL, shard_seconds=300))
    done, rejects = rows_of(output), rows_of(output, "rejects")
    assert summary.num_items == len(files)
    recognised = {row["uri"] for row in done}
    refused = {str(row["uri"]): row for row in rejects}
    assert recognised | refused.keys() == files
    assert not recognised & refused.keys()
    names = {Path(uri).name for uri in refused}
    # headerless samples and the malformed files, and nothing else
    assert {"awful.wav", "bad.wav", "evil.wav", "null.wav"} <= names
    assert all(name.endswith(".raw") for name in names - {"awful.wav", "bad.wav", "evil.wav", "null.wav"})
    assert refused[str(shared_data / "misc/broken/null.wav")]["error_class"] == "EmptyAudioError"
    assert refused[str(shared_data / "misc/broken/awful.wav")]["error_class"] == "AudioLimitError"
    assert refused[str(shared_data / "misc/broken/evil.wav")]["error_class"] == "DecodeError"

    encodings = [row for row in done if "/misc/derived/" in str(row["uri"])]
    durations = {}
    for row in encodings:
        durations[row["uri"]] = durations.get(row["uri"], 0) + float(str(row["duration_s"]))
    assert len(durations) == 21
    assert max(durations.values()) - min(durations.values()) <= 0.1


def machines(cpus: float, gpus: float = 0.0, *, num_nodes: int = 1) -> Machines:
    return Machines(num_nodes=num_nodes, cpus=cpus, node_cpus=cpus / num_nodes, gpus=gpus)


def pools_of(there: Machines, **settings: Any) -> Pools:
    return Pools.for_cluster(JobConfig(inputs=("a",), output="b", model="c", **settings), there)


def test_pools_leave_room_for_readers_and_refuse_what_cannot_run() -> None:
    for cpus in (1, 2, 3, 8, 64):
        pools = pools_of(machines(cpus))
        left = cpus - pools.num_encoders * pools.encoder_cpus - pools.num_decoders * pools.decoder_cpus
        left -= pools.num_writers * pools.task_cpus
        assert left >= pools.task_cpus > 0
    assert pools_of(machines(64, 4)).num_encoders == 4
    with pytest.raises(ConfigError, match="no GPU"):
        pools_of(machines(8), device="cuda")
    with pytest.raises(ConfigError, match="num_decoders"):
        pools_of(machines(2), num_decoders=99)
    with pytest.raises(ConfigError, match=r"2 GPUs, with room for 2 .* set it to 2, and max_encoders"):
        pools_of(machines(8, 2), num_encoders=5)
    with pytest.raises(ConfigError, match="num_encoders is 9 but the cluster has 8 CPUs; set 8 at most"):
        pools_of(machines(8), num_encoders=9)


@pytest.mark.parametrize("num_nodes", [2, 3, 7, 20])
@pytest.mark.parametrize("node_cpus", [1, 2, 4, 8, 64])
@pytest.mark.parametrize("gpus", [0, 1])
def test_pools_fit_on_what_is_left_when_a_machine_is_lost(num_nodes: int, node_cpus: int, gpus: int) -> None:
    """Wherever Ray puts them: some machine has room for a reader."""
    for settings in ({}, {"lm": "x.bin"}):
        pools = pools_of(machines(num_nodes * node_cpus, gpus * num_nodes, num_nodes=num_nodes), **settings)
        # An encoder of a GPU that is gone waits for another, and takes nothing from the rest meanwhile.
        encoders = pools.num_encoders - gpus
        reserved = encoders * pools.encoder_cpus + pools.num_decoders * pools.decoder_cpus
        reserved += pools.num_writers * pools.task_cpus
        left = (num_nodes - 1) * node_cpus - reserved
        assert left / (num_nodes - 1) >= pools.task_cpus > 0
        assert max(pools.encoder_cpus, pools.decoder_cpus) <= node_cpus / 2


def test_pools_follow_the_machines_that_are_there() -> None:
    assert pools_of(machines(12, num_nodes=3)).num_encoders == 3  # one on each machine
    assert pools_of(machines(12, num_nodes=3)).encoder_threads == 4
    assert pools_of(machines(12, num_nodes=3), num_encoders=5).encoder_threads == 2
    halves = pools_of(machines(64, 4), gpus_per_encoder=0.5)
    assert (halves.num_encoders, halves.encoder_gpus, halves.growth) == (8, 0.5, 1.0)
    assert pools_of(machines(64, 2), gpus_per_encoder=0.3).num_encoders == 6
    with pytest.raises(ConfigError, match=r"2 GPUs, with room for 4 at gpus_per_encoder 0\.5"):
        pools_of(machines(64, 2), gpus_per_encoder=0.5, num_encoders=5)
    grows = pools_of(machines(16, 2), max_encoders=8)
    assert (grows.growth, grows.encoders(100), grows.decoders()) == (4.0, (2, 8), (2, 8))
    assert pools_of(machines(16, 2), max_encoders=1).growth == 1.0  # more are there already
    with pytest.raises(ConfigError, match="no L4 GPU"):
        pools_of(machines(16), accelerator_type="L4")


@pytest.mark.parametrize("node_cpus", [1, 2, 8, 64])
def test_an_encoder_on_cpus_asks_for_a_machine_where_more_may_come(node_cpus: int) -> None:
    pools = pools_of(machines(node_cpus), max_encoders=4)
    assert (pools.num_encoders, pools.growth) == (1, 4.0)
    assert pools.encoders(100) == (4, 4)  # asked for at once
    assert pools.encoders(2) == (2, 2)  # a third would have no shard
    assert node_cpus / 2 < pools.encoder_cpus < node_cpus  # or an autoscaler would put two on one machine
    grown = pools.num_decoders * pools.decoder_cpus * pools.growth + pools.num_writers * pools.task_cpus
    assert node_cpus - pools.encoder_cpus - grown >= pools.task_cpus > 0  # the first machine may have all
    assert pools.num_readers == max(1, node_cpus // 4) * 4  # no more than feed as many machines
    two = pools_of(machines(16, num_nodes=2), num_encoders=4, max_encoders=6).encoder_cpus
    assert two * 2 < 8 < two * 3


def test_text_decoders_keep_up_with_encoders() -> None:
    def pools(cpus: int, gpus: int, **settings: object) -> Pools:
        return pools_of(machines(cpus, gpus), **settings)

    assert pools(64, 0, lm="x.arpa").decoder_threads == 1
    assert pools(64, 0).decoder_threads == 1
    one, eight = pools(64, 1, lm="x.arpa"), pools(256, 8, lm="x.arpa")
    assert (one.num_decoders, one.decoder_threads, one.decoder_cpus) == (1, 3, 3.0)
    assert eight.num_decoders * eight.decoder_threads == 24
    assert pools(64, 1, lm="x.arpa", beam_width=500).decoder_threads == 15
    assert pools(64, 1, lm="x.bin").decoder_threads == 15
    assert pools(8, 1, lm="x.bin").decoder_threads == 4  # half of the CPUs at most
    assert pools(64, 1, lm="x.arpa", num_decoders=3).decoder_threads == 1
    assert pools(64, 1, lm="x.arpa", decoder_threads=9).decoder_threads == 9
    many = pools_of(machines(32, 8, num_nodes=8), lm="x.arpa")  # none takes a machine from its encoder
    assert (many.num_decoders, many.decoder_threads) == (7, 2)
    job = RedecodeConfig(source="a", output="b", lm="x.arpa", decoder_threads=6)
    again = Pools.for_redecode(job, cpus=2)
    assert (again.num_encoders, again.decoder_threads) == (0, 6)
    assert again.decoder_cpus + again.task_cpus * 2 <= 2


def test_a_summary_is_one_line_of_json(demo_run: tuple[Path, list[Progress]]) -> None:
    summary = run(replace(demo_job(), output=str(demo_run[0])))
    assert json.loads(summary.to_json())["num_shards"] == summary.num_shards_before
    assert ray.is_initialized()  # a run leaves a Ray that it did not start
    assert isinstance(pq.read_schema(next((demo_run[0] / "transcripts").iterdir())), pa.Schema)


def test_a_run_forgets_the_shards_that_it_has_published(tmp_path: Path, ray_session: None) -> None:
    """Or the book of a million shards would outgrow its process."""
    entries = [{"audio_filepath": "a.wav", "id": str(number), "duration": 10.0} for number in range(4)]
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    plan = make_plan([str(tmp_path / "m.jsonl")], str(tmp_path / "out"), shard_seconds=10.0, job={})
    assert plan.num_shards == 4
    seen: list[Progress] = []
    run = Run(plan, stall_s=60.0, queues={}, on_progress=seen.append)
    book = RemoteBook(run.attempts)

    def publish(table: pa.Table) -> pa.Table:
        time.sleep(0.8)  # longer than from one look at the run to the next
        return table

    counts = dict.fromkeys(("num_items", "num_items_rejected", "num_rows", "num_rejects", "num_bytes"), 1)
    rest = {"audio_s": 10.0, "rejected_s": 0.0, "rejects_by_reason": "{}", "quality": "{}"}
    summaries = [pa.Table.from_pylist([{"shard_id": shard, **counts, **rest}]) for shard in plan.pending]
    ds = ray.data.from_blocks(summaries).map_batches(
        TrackedStage(publish, name="write", book=book), batch_size=1, batch_format="pyarrow", concurrency=1
    )
    gathered = [str(summary["shard_id"]) for summary in run.gather(ds)]
    assert sorted(gathered) == sorted(plan.pending)
    assert (seen[-1].num_shards_done, seen[-1].num_rejects, seen[-1].done_s) == (4, 4, 40.0)
    (state,) = ray.get(run.attempts.state.remote())
    assert state.num_done == 4
    assert book.begin("write", gathered[0]).begun == 1  # as if for the first time
    assert book.begin("write", gathered[0]).begun == 2
