"""Where language models come from: what tells their files apart, and what is seen before they are opened."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from w2v_ray import demo, stores
from w2v_ray.errors import ConfigError, LanguageModelError
from w2v_ray.text.lm_source import (
    check_letters,
    content_of,
    find_language_model,
    load_language_model,
    read_words,
    sampled_words,
)

ARPA = demo.LANGUAGE_MODEL.read_bytes()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("W2V_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def compiled(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.w2vlm"))


def test_words_are_sampled_from_every_kind(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "lm.arpa.gz").write_bytes(gzip.compress(ARPA))
    load_language_model(find_language_model(str(tmp_path / "lm.arpa.gz")))
    (mapped,) = compiled(cache)
    for path in (str(demo.LANGUAGE_MODEL), str(tmp_path / "lm.arpa.gz"), str(mapped)):
        words = sampled_words(path)
        assert {"ZERO", "YES", "MARVIN"} <= set(words), path
        check_letters("it", words, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    (tmp_path / "not.arpa").write_bytes(b"no language model")
    with pytest.raises(LanguageModelError):
        sampled_words(str(tmp_path / "not.arpa"))


def test_a_model_of_a_store_is_brought_here_once(s3: str, cache: Path) -> None:
    url = f"{s3}/lm.arpa"
    stores.publish(url, ARPA)
    before = content_of(url)
    model = load_language_model(find_language_model(url), alpha=0.25)
    assert (model.alpha, model.beta, model.order) == (0.25, 1.5, 2)
    assert len(compiled(cache)) == 1
    load_language_model(find_language_model(url))
    assert len(compiled(cache)) == 1
    assert "YES" in sampled_words(url)
    stores.publish(url, ARPA.replace(b"YES", b"YEA"))
    assert content_of(url) != before


def test_compiled_models_of_another_version_are_not_taken_from_the_cache(cache: Path) -> None:
    load_language_model(find_language_model(str(demo.LANGUAGE_MODEL)))
    (compiled,) = (cache / "language-models").glob("*.w2vlm")
    version = int.from_bytes(compiled.read_bytes()[8:12], "little")
    assert compiled.stem.endswith(f"-{version}")


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one.arpa", tmp_path / "two.arpa"
    one.write_bytes(ARPA)
    two.write_bytes(ARPA)
    assert content_of(str(one)) == content_of(str(two))
    two.write_bytes(ARPA.replace(b"YES", b"YEA"))
    os.utime(two, ns=(0, 0))
    assert content_of(str(one)) != content_of(str(two))


def test_a_compiled_model_needs_no_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_language_model(find_language_model(str(demo.LANGUAGE_MODEL)))
    (mapped,) = compiled(cache)
    blocked = tmp_path / "a_file"
    blocked.write_text("")
    monkeypatch.setenv("W2V_RAY_CACHE", str(blocked))
    assert load_language_model(find_language_model(str(mapped))).order == 2
    with pytest.raises(LanguageModelError, match="set W2V_RAY_CACHE to a folder with room"):
        load_language_model(find_language_model(str(demo.LANGUAGE_MODEL)))


def test_letters_of_another_case_or_script_are_told_apart() -> None:
    check_letters("it", ["one", "two", "THREE"], "abcdefghijklmnopqrstuvwxyz")  # most of them fit
    with pytest.raises(ConfigError, match="it spells 'ONE' where the vocabulary has 'one'; write it in"):
        check_letters("it", ["ONE", "TWO"], "abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(ConfigError, match=r"of which the vocabulary lacks \['1'\]"):
        check_letters("it", ["1"], "abc")
    check_letters("it", ["<s>", "</s>", "<unk>"], "abc")


def test_files_of_words(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("one\ntwo\n\n")
    assert read_words(str(tmp_path / "words.txt")) == ["one", "two"]
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_words(str(tmp_path / "words.txt"))
    with pytest.raises(ConfigError, match="is a folder"):
        read_words(str(tmp_path))
