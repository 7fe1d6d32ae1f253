"""Every fenced block of the documentation: its commands parse, its code compiles, and what can be run is run.

A block of commands or of Python that has no mark above it is executed here, in a folder where the names that
the page uses are there, after the blocks before it and with their variables. A mark is a comment that readers
do not see: ``<!-- not run: REASON -->``, ``<!-- not run, COMMAND and COMMAND: REASON -->`` for some commands
of the block (those with ``--dry-run`` are run), or ``<!-- run by tests/FILE -->``.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from tests.export_outputs import SHARDS, item, made_output, metadata, segment
from tests.head_checkpoints import add_head
from tests.made_languages import make_checkpoint
from tests.made_outputs import publish
from tests.speaker_outputs import embedded, embeddings_output, utterances
from w2v_ray import cli, cli_decode, cli_jobs, demo, stores
from w2v_ray.config import JobConfig, RedecodeConfig
from w2v_ray.job import prepare
from w2v_ray.job_file import load_job
from w2v_ray.rttm import Turn, rttm_line

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"(?ms)^(?:<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$")
LANGUAGES = {"sh", "console", "python", "yaml", "json", "jsonl", "csv", "text"}
NOT_RUN = re.compile(r"not run(?:, (?P<some>[\w, -]+))?: (?P<reason>.+)")
RUN_BY = re.compile(r"run by (?P<test>tests/\S+\.py)")
JOBS = {"transcribe", "align", "embed", "classify", "frames"}
MODEL = "facebook/wav2vec2-base-960h"


@dataclass(frozen=True)
class Snippet:
    page: str
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command; those on both sides of a pipe are two."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found: list[list[str]] = []
        for line in lines:
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&>")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, "|"]:
                if word in ("|", "&", "&&"):
                    found += [words] if words else []
                    words = []
                else:
                    words.append(word)
        return [words[: words.index(">")] if ">" in words else words for words in found]

    def is_run(self, words: list[str]) -> bool:
        """Whether a command of it is executed here."""
        if not self.mark:
            return True
        match = NOT_RUN.fullmatch(self.mark)
        if not match or not match["some"]:
            return False
        return name_of(words) not in re.split(", | and ", match["some"]) or "--dry-run" in words


def name_of(words: list[str]) -> str:
    """The command of w2v-ray, or the program."""
    return words[1] if is_ours(words) else words[0]


def is_ours(words: list[str]) -> bool:
    return words[0] in ("w2v-ray", ".venv/bin/w2v-ray")


def snippets_of(page: str, text: str) -> Iterator[Snippet]:
    for match in FENCE.finditer(text):
        mark = match["mark"] or ""
        yield Snippet(
            page=page,
            line=text.count("\n", 0, match.start("language")) + 1,
            language=match["language"],
            text=match["text"],
            mark=mark if re.match("not run|run by", mark) else "",
        )


SNIPPETS = [
    snippet
    for path in PAGES
    for snippet in snippets_of(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
]
CODE = [snippet for snippet in SNIPPETS if snippet.language in ("sh", "console", "python")]


def is_executed(snippet: Snippet) -> bool:
    if snippet.language == "python":
        return not snippet.mark
    return any(snippet.is_run(words) for words in snippet.commands)


def test_every_fence_is_seen_and_has_a_language() -> None:
    lines = [line for path in PAGES for line in path.read_text(encoding="utf-8").splitlines()]
    assert 2 * len(SNIPPETS) == sum(line.lstrip().startswith("```") for line in lines)
    assert [str(snippet) for snippet in SNIPPETS if snippet.language not in LANGUAGES] == []


def wrong(mark: str, page: str, names: set[str]) -> str:
    """What is wrong with the mark of a block that holds these commands."""
    by, left = RUN_BY.fullmatch(mark), NOT_RUN.fullmatch(mark)
    if not by and not left:
        return "neither 'not run: REASON' nor 'run by tests/FILE.py'"
    for path in re.findall(r"tests/[\w/.]+\w", mark):
        if not (ROOT / path).exists():
            return f"{path} does not exist"
    if by and Path(page).name not in (ROOT / by["test"]).read_text(encoding="utf-8"):
        return f"{by['test']} does not mention {page}"
    if left and left["some"] and not set(re.split(", | and ", left["some"])) <= names:
        return f"the block has no {left['some']}"
    return ""


@pytest.mark.parametrize("snippet", [snippet for snippet in SNIPPETS if snippet.mark], ids=str)
def test_every_mark_is_true(snippet: Snippet) -> None:
    names = {name_of(words) for words in snippet.commands} if snippet.language != "python" else set()
    assert wrong(snippet.mark, snippet.page, names) == ""


def test_a_mark_that_is_not_true_is_found() -> None:
    assert wrong("not run", "a.md", set()).startswith("neither")
    assert wrong("run by tests/test_gone.py", "a.md", set()) == "tests/test_gone.py does not exist"
    assert "does not mention" in wrong("run by tests/test_docs.py", "docs/none.md", set())
    assert wrong("not run, embed and frames: x", "a.md", {"embed"}) == "the block has no embed and frames"
    assert wrong("not run: as tests/test_docs.py says", "a.md", set()) == ""


@pytest.mark.parametrize("snippet", [s for s in CODE if s.language != "python"], ids=str)
def test_every_command_parses(snippet: Snippet) -> None:
    assert snippet.commands
    for words in snippet.commands:
        if words[0] == "make":
            targets = re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"))
            assert set(words[1:]) <= set(targets)
        elif is_ours(words):
            args = cli._parsed(cli._parser(), words[1:])
            if args.command in JOBS:
                cli_jobs.job_of(args)  # refuses settings that do not go together
            elif args.command == "redecode":
                cli_decode.redecode_job(args)
        else:
            assert not snippet.is_run(words), f"{words[0]} cannot be run here: mark it"


def test_pipes_prompts_quotes_and_continued_lines_are_read() -> None:
    text = "$ w2v-ray lm info a \\\n  b | c --d > e\nw2v-ray\n$ x 'y z' &  # no\n"
    (snippet,) = snippets_of("a.md", f"```console\n{text}```\n")
    assert snippet.commands == [["w2v-ray", "lm", "info", "a", "b"], ["c", "--d"], ["x", "y z"]]
    (snippet,) = snippets_of("a.md", "<!-- not run, a and b: c -->\n```sh\na\nb --dry-run\nd\n```\n")
    assert [snippet.is_run(words) for words in snippet.commands] == [False, True, True]


@pytest.mark.parametrize("snippet", [s for s in SNIPPETS if s.language == "python"], ids=str)
def test_all_python_compiles(snippet: Snippet) -> None:
    compile(snippet.text, str(snippet), "exec")


@pytest.mark.parametrize("snippet", [s for s in SNIPPETS if s.language in ("yaml", "json", "jsonl")], ids=str)
def test_all_data_can_be_read(snippet: Snippet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if snippet.language != "yaml":
        texts = [snippet.text] if snippet.language == "json" else snippet.text.splitlines()
        assert all(isinstance(json.loads(text), (dict, list)) for text in texts)
        return
    keys = yaml.safe_load(snippet.text) or {}
    if not keys.keys() & JobConfig.__dataclass_fields__.keys():
        return
    monkeypatch.setenv("DAY", "2026-11-22")
    (tmp_path / "job.yaml").write_text(snippet.text, encoding="utf-8")
    required = {"inputs": "[a]", "output": "b", "model": "c"}
    job = load_job(tmp_path / "job.yaml", [f"{k}={v}" for k, v in required.items() if k not in keys])
    assert not isinstance(job, RedecodeConfig)


# ---- what is executed


def place_checkpoints(folder: Path) -> None:
    """The demo's checkpoint under the names of the hub that pages use, and one with a language model."""
    from w2v_ray import AutoModelForCTC, AutoProcessor, Wav2Vec2ProcessorWithLM
    from w2v_ray.text import build_ctcdecoder

    for name in (MODEL, "facebook/wav2vec2-base"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(demo.CHECKPOINT)
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


@pytest.fixture(scope="module")
def bucket(s3_server: None) -> Iterator[None]:
    """The bucket of the pages, with an archive and an output."""
    import fsspec

    system = fsspec.filesystem("s3")
    system.mkdir("bucket")
    stores.publish("s3://bucket/archive/a.flac", (demo.ARCHIVE / "00_0b57a6ed.flac").read_bytes())
    made_output("s3://bucket/out", SHARDS)
    yield
    system.rm("bucket", recursive=True)


@pytest.mark.parametrize("page", sorted({snippet.page for snippet in CODE if is_executed(snippet)}))
def test_what_a_page_shows_runs(
    page: str,
    bucket: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("W2V_RAY_CACHE", str(tmp_path / "cache"))
    name = Path(page).name
    place_files(tmp_path)
    place_checkpoints(tmp_path)
    place_outputs(name, tmp_path)
    variables = given(name) | {"__name__": "__main__"}
    for snippet in CODE:
        if snippet.page != page or not is_executed(snippet):
            continue
        if snippet.language == "python":
            exec(compile(snippet.text, str(snippet), "exec"), variables)
            continue
        for words in snippet.commands:
            if snippet.is_run(words):
                code = cli.main(words[1:])
                assert code == 0, f"{snippet}: {shlex.join(words)}: {capsys.readouterr().err}"


# ---- what the jobs of the pages would do


@pytest.fixture(scope="module")
def places(bucket: None, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all inputs and checkpoints that jobs of the pages name are there."""
    from w2v_ray import Wav2Vec2ForCTC
    from w2v_ray.models.config import Wav2Vec2Config

    folder = tmp_path_factory.mktemp("places")
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
    heads["classify"] = ["emotions", "language-checkpoint", "keywords", "facebook/mms-lid-126"]
    for task, names in heads.items():
        add_head(demo.CHECKPOINT, folder / f"{task}-head", task)
        for name in names:
            (folder / name).symlink_to(folder / f"{task}-head")
    deep = folder / "facebook" / "wav2vec2-base"
    shutil.copytree(tiny_checkpoint, deep)
    config = Wav2Vec2Config.from_pretrained(tiny_checkpoint, num_hidden_layers=12)
    Wav2Vec2ForCTC(config).save_pretrained(deep)

    inputs, output = (str(folder / "manifest.jsonl"),), str(folder / "done")
    done = JobConfig(inputs=inputs, output=output, model=str(demo.CHECKPOINT), keep_log_probs=8)
    publish(prepare(done), keeps_log_probs=True)
    return folder


JOB_COMMANDS = [
    pytest.param(words[1:], id=f"{snippet}-{number}")
    for snippet in CODE
    if snippet.language != "python"
    for number, words in enumerate(snippet.commands)
    if is_ours(words) and words[1] in (*JOBS, "run", "redecode", "retry-errors") and not snippet.is_run(words)
]


@pytest.mark.parametrize("words", JOB_COMMANDS)
def test_a_job_that_is_not_run_would_begin(
    words: list[str], places: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its inputs, checkpoints and settings are checked as before a run, into an output of its own."""
    monkeypatch.chdir(places)
    monkeypatch.syspath_prepend(places)
    if "--output" in words:
        place = words.index("--output") + 1
        words = [*words[:place], "new", *words[place + 1 :]]
    if words[0] in ("redecode", "retry-errors"):
        words[1] = "done"
    code = cli.main([*(word for word in words if word != "--dry-run"), "--dry-run"])
    sys.modules.pop("energy_vad", None)  # another test has one of that name
    said = capsys.readouterr()
    assert code == 0, said.err
    if words[0] == "retry-errors":  # nothing was rejected
        assert "again       none of " in said.out
    else:
        assert " to do" in said.out
    assert not (places / "new").exists()
