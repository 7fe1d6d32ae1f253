"""``w2v-ray lm``: what it writes, says and refuses."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
from pathlib import Path

import pytest

from w2v_ray.cli import main

DATA = Path(__file__).resolve().parent / "data" / "lm"
TEXT, ARPA = DATA / "tiny.txt", DATA / "tiny.arpa"


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main(["lm", *map(str, args)])
    said = capsys.readouterr()
    return code, said.out, said.err


def build(tmp_path: Path, *more: object) -> list[object]:
    return ["build", TEXT, "--output", tmp_path / "m.arpa", "--order", 3, "--discount-fallback", *more]


def test_build_compile_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *build(tmp_path))
    assert code == 0
    assert "37 words in 6 sentences, 11 different" in out
    assert re.search(r"3-grams +33, discounts 0\.500 1\.000 1\.500", out)
    assert re.search(r"perplexity of the text itself: 2\.3", out)
    ngrams = {re.sub(r"-?[\d.]+(\t|$)", "", line) for line in (tmp_path / "m.arpa").read_text().splitlines()}
    assert ngrams == {
        re.sub(r"-?[\d.]+(\t|$)", "", line).removesuffix("\t0") for line in ARPA.read_text().splitlines()
    }

    code, out, _ = run(capsys, "compile", tmp_path / "m.arpa", tmp_path / "m.w2vlm")
    assert code == 0
    assert "14 1-grams, 27 2-grams, 33 3-grams" in out

    code, out, _ = run(capsys, "info", tmp_path / "m.w2vlm")
    assert code == 0
    assert "compiled model of order 3" in out
    assert "checksum right" in out
    assert "the cat" in out
    code, out, _ = run(capsys, "info", tmp_path / "m.arpa")
    assert (code, out.split(" of ")[0]) == (0, "ARPA model")
    code, out, _ = run(capsys, "info", DATA / "tiny_trie.bin")
    assert code == 0
    assert "KenLM binary file of order 3" in out


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *build(tmp_path), "--json", "--prune", 0, 0, 1)
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["num_ngrams_before_pruning"] == [14, 27, 33]
    assert found["num_ngrams"][:2] == [14, 27]
    assert found["num_ngrams"][2] < 33
    assert found["perplexity"] > 2.3
    code, out, _ = run(capsys, "compile", ARPA, tmp_path / "m.w2vlm", "--json")
    assert json.loads(out)["num_ngrams"] == [14, 27, 33]
    code, out, _ = run(capsys, "info", tmp_path / "m.w2vlm", "--json")
    assert json.loads(out)["kind"] == "compiled"


def test_several_texts_and_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = TEXT.read_bytes().splitlines(keepends=True)
    (tmp_path / "a.txt").write_bytes(b"".join(lines[:2]))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"".join(lines[2:4])))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"".join(lines[4:]))))
    parts = [tmp_path / "a.txt", tmp_path / "b.gz", "-"]
    options = ["--order", 3, "--discount-fallback", 0.5, 1, 1.5]
    assert run(capsys, "build", *parts, "--output", tmp_path / "parts.arpa", *options)[0] == 0
    assert run(capsys, *build(tmp_path))[0] == 0
    assert (tmp_path / "parts.arpa").read_bytes() == (tmp_path / "m.arpa").read_bytes()


def test_the_perplexity_of_another_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = tmp_path / "held.txt"
    held.write_text("the cat sat on a stranger\n")
    _, out, _ = run(capsys, *build(tmp_path), "--perplexity-of", held)
    assert f"perplexity of {held}: " in out
    assert "1 of its words unknown" in out
    held.write_text(" \n")
    code, _, err = run(capsys, *build(tmp_path), "--perplexity-of", held)
    assert code == 2
    assert "holds no words" in err


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["build", "none.txt", "--output", "{tmp}/m"], "none.txt"),
        (["build", TEXT, "--output", "{tmp}"], "is a folder"),
        (["build", TEXT, "--output", "{tmp}/none/m"], "make it first"),
        (["build", TEXT, "--output", "{tmp}/m", "--order", 0], "--order 0"),
        (["build", TEXT, "--output", "{tmp}/m", "--order", 2, "--prune", 0, 0, 1], "1 to 2 thresholds"),
        (["build", TEXT, "--output", "{tmp}/m"], "--discount-fallback"),
        (["build", TEXT, "--output", "{tmp}/m", "--discount-fallback", 1], "0.5 1 1.5"),
        (["build", TEXT, "--output", "{tmp}/m.w2vlm"], "run w2v-ray lm compile on it"),
        (["build", TEXT.parent, "--output", "{tmp}/m"], "is not a regular file"),
        (["compile", TEXT, "{tmp}/m"], "no ARPA file"),
        (["compile", DATA / "tiny_probing.bin", "{tmp}/m"], "compile the ARPA file"),
        (["compile", ARPA, "{tmp}/none/m"], "make it first"),
        (["info", "{tmp}/none"], "does not exist"),
        (["info", TEXT.parent], "is a folder; name a file"),
    ],
)
def test_refusals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[object], reason: str
) -> None:
    code, out, err = run(capsys, *(str(arg).format(tmp=tmp_path) for arg in args))
    assert (code, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["build", "compile"])
def test_what_is_read_is_never_replaced(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, link = tmp_path / "source", tmp_path / "link"
    content = (TEXT if command == "build" else ARPA).read_bytes()
    source.write_bytes(content)
    link.symlink_to(source)
    for output in (source, link):
        args = (
            [source, output] if command == "compile" else [source, "--output", output, "--discount-fallback"]
        )
        code, out, err = run(capsys, command, *args)
        assert (code, out) == (2, "")
        assert "is also what would be read; name another file" in err
    assert source.read_bytes() == content


@pytest.mark.parametrize("option", [["--prune", 0, 0, 1], ["--discount-fallback"]])
def test_a_text_behind_numbers_is_told_where_it_belongs(
    option: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["lm", "build", "--output", str(tmp_path / "m"), *map(str, option), str(TEXT)])
    assert caught.value.code == 2
    assert f"{str(TEXT)!r} is no" in (said := capsys.readouterr().err)
    assert "put it before this option" in said


def test_a_damaged_model_shows_in_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "compile", ARPA, tmp_path / "m.w2vlm")
    data = bytearray((tmp_path / "m.w2vlm").read_bytes())
    data[-5] ^= 1
    (tmp_path / "m.w2vlm").write_bytes(data)
    code, _, err = run(capsys, "info", tmp_path / "m.w2vlm")
    assert code == 2
    assert "checksum" in err


@pytest.mark.parametrize("command", [[], ["build"], ["compile"], ["info"]])
def test_help_can_be_read(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        main(["lm", *command, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 110
    assert "%(" not in said
