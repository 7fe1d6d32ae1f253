"""Every fenced block of the documentation: its commands parse, its code compiles, and what can be run is run.

What takes a Ray or a minute is run by test_snippets_slow.py, and here its commands are tried without running;
``tests/snippets.py`` says how blocks are marked.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.export_outputs import SHARDS, made_output
from tests.made_outputs import publish
from tests.snippet_places import (
    given,
    place_checkpoints,
    place_everything,
    place_files,
    place_outputs,
    stored_bucket,
)
from tests.snippets import (
    CODE,
    JOBS,
    MARK,
    PAGES,
    ROOT,
    SNIPPETS,
    Snippet,
    is_ours,
    name_of,
    names_in,
    snippets_of,
)
from w2v_ray import cli, cli_decode, cli_jobs, demo
from w2v_ray.config import JobConfig, RedecodeConfig
from w2v_ray.job import prepare
from w2v_ray.job_file import load_job

LANGUAGES = {"sh", "console", "python", "yaml", "json", "jsonl", "csv", "text"}
# Without these nothing of a block may be left out: a cluster's machines, schedulers, and this suite itself.
NEVER_RUN = {
    "README.md": {"make test", "kubectl"},
    "docs/clusters.md": {"ray", "kubectl", "sbatch"},
}


def test_every_fence_is_seen_and_has_a_language() -> None:
    lines = [line for path in PAGES for line in path.read_text(encoding="utf-8").splitlines()]
    assert 2 * len(SNIPPETS) == sum(line.lstrip().startswith("```") for line in lines)
    assert [str(snippet) for snippet in SNIPPETS if snippet.language not in LANGUAGES] == []


def wrong(mark: str, page: str, names: set[str]) -> str:
    """What is wrong with a mark of a block that holds these commands."""
    match = MARK.fullmatch(mark)
    if not match:
        return "neither 'not run: REASON' nor 'run by make slow' nor 'run by tests/FILE.py'"
    if mark.startswith("not run") != bool(match["reason"]):
        return "a reason is for what is not run"
    for path in re.findall(r"tests/[\w/.]+\w", mark):
        if not (ROOT / path).exists():
            return f"{path} does not exist"
    if match["test"] and Path(page).name not in (ROOT / match["test"]).read_text(encoding="utf-8"):
        return f"{match['test']} does not mention {page}"
    if match["some"] and not set(names_in(match["some"])) <= names:
        return f"the block has no {match['some']}"
    return ""


@pytest.mark.parametrize("snippet", [snippet for snippet in SNIPPETS if snippet.marks], ids=str)
def test_every_mark_is_true(snippet: Snippet) -> None:
    names = {name_of(words) for words in snippet.commands} if snippet.language != "python" else set()
    assert [wrong(mark, snippet.page, names) for mark in snippet.marks] == [""] * len(snippet.marks)


def test_a_mark_that_is_not_true_is_found() -> None:
    assert wrong("not run", "a.md", set()).startswith("a reason")
    assert wrong("run by make slow: it is slow", "a.md", set()).startswith("a reason")
    assert wrong("run by nobody", "a.md", set()).startswith("neither")
    assert wrong("run by tests/test_gone.py", "a.md", set()) == "tests/test_gone.py does not exist"
    assert "does not mention" in wrong("run by tests/test_docs.py", "docs/none.md", set())
    assert wrong("not run, embed and frames: x", "a.md", {"embed"}) == "the block has no embed and frames"
    assert wrong("run by make slow, make test", "a.md", {"make"}) == "the block has no make test"
    assert wrong("not run: as tests/test_docs.py says", "a.md", set()) == ""


def test_what_is_run_nowhere_is_known() -> None:
    never: dict[str, set[str]] = {}
    for snippet in CODE:
        if snippet.language == "python":
            assert snippet.how() != "never", snippet
            continue
        for words in snippet.commands:
            if snippet.how(words) == "never":
                never.setdefault(snippet.page, set()).add(name_of(words))
    assert never == NEVER_RUN


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
            assert snippet.how(words) != "test", f"{words[0]} cannot be run here: mark it"


def test_pipes_prompts_quotes_and_continued_lines_are_read() -> None:
    text = "$ w2v-ray lm info a \\\n  b | c --d > e\nw2v-ray\n$ x 'y z' &  # no\n"
    (snippet,) = snippets_of("a.md", f"```console\n{text}```\n")
    assert snippet.commands == [["w2v-ray", "lm", "info", "a", "b"], ["c", "--d"], ["x", "y z"]]
    marks = "<!-- more -->\n<!-- not run, a and b: c -->\n<!-- run by make slow, make d -->\n"
    (snippet,) = snippets_of("a.md", f"{marks}```sh\na\nb --dry-run\nmake d\nmake e\n```\n")
    assert [snippet.how(words) for words in snippet.commands] == ["never", "test", "slow", "test"]
    (snippet,) = snippets_of("a.md", "<!-- run by tests/x.py -->\n```python\n```\n")
    assert snippet.how() == "tests/x.py"
    assert not snippet.is_executed("test", "slow")


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


@pytest.fixture(scope="module")
def bucket(s3_server: None) -> Iterator[None]:
    with stored_bucket():
        made_output("s3://bucket/out", SHARDS)
        yield


@pytest.mark.parametrize("page", sorted({snippet.page for snippet in CODE if snippet.is_executed("test")}))
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
        if snippet.page != page:
            continue
        if snippet.language == "python":
            if snippet.how() == "test":
                exec(compile(snippet.text, str(snippet), "exec"), variables)
            continue
        for words in snippet.commands:
            if snippet.how(words) == "test":
                code = cli.main(words[1:])
                assert code == 0, f"{snippet}: {shlex.join(words)}: {capsys.readouterr().err}"


# ---- what the jobs of the pages would do


@pytest.fixture(scope="module")
def places(bucket: None, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all inputs and checkpoints that jobs of the pages name are there."""
    folder = tmp_path_factory.mktemp("places")
    place_everything(folder, tiny_checkpoint)
    inputs, output = (str(folder / "manifest.jsonl"),), str(folder / "done")
    done = JobConfig(inputs=inputs, output=output, model=str(demo.CHECKPOINT), keep_log_probs=8)
    publish(prepare(done), keeps_log_probs=True)
    return folder


JOB_COMMANDS = [
    pytest.param(words[1:], id=f"{snippet}-{number}")
    for snippet in CODE
    if snippet.language != "python"
    for number, words in enumerate(snippet.commands)
    if is_ours(words)
    and words[1] in (*JOBS, "run", "redecode", "retry-errors")
    and snippet.how(words) == "slow"
]


@pytest.mark.parametrize("words", JOB_COMMANDS)
def test_a_job_that_only_make_slow_runs_would_begin(
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
    gpus = ["--cluster", "8,1"] if "device=cuda" in words else []
    code = cli.main([*(word for word in words if word != "--dry-run"), "--dry-run", *gpus])
    sys.modules.pop("energy_vad", None)  # another test has one of that name
    said = capsys.readouterr()
    assert code == 0, said.err
    if words[0] == "retry-errors":  # nothing was rejected
        assert re.search(r"(?m)^again +none of \d+ item", said.out)
    else:
        assert " to do" in said.out
    assert not (places / "new").exists()
