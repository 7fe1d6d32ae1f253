"""Opening language models by content, from paths and stores, by one process and by many."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import pickle
import random
import struct
from pathlib import Path

import fsspec
import pytest

from w2v_ray import stores
from w2v_ray.errors import LanguageModelError
from w2v_ray.text import language_model
from w2v_ray.text.language_model import KenlmModel, NgramModel, cache_folder, open_language_model

DATA = Path(__file__).resolve().parents[1] / "data" / "lm"
ARPA = DATA / "tiny.arpa"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("W2V_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "language-models"


def put(uri: str, data: bytes) -> str:
    with fsspec.open(uri, "wb") as file:
        file.write(data)
    return uri


def compiled(tmp_path: Path) -> Path:
    model = open_language_model(ARPA)
    assert isinstance(model, NgramModel)
    path = tmp_path / "tiny.w2vlm"
    model.save(path)
    return path


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    files = {
        "plain": ARPA.read_bytes(),
        "packed.arpa": gzip.compress(ARPA.read_bytes()),
        "compiled.gz": compiled(tmp_path).read_bytes(),
    }
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        model = open_language_model(path)
        assert isinstance(model, NgramModel)
        assert model.num_ngrams == [14, 27, 33]
        assert model.path == (str(path) if name == "compiled.gz" else None)
    assert open_language_model(f"file://{tmp_path}/plain").order == 3


@pytest.mark.parametrize("kind", ["probing", "trie"])
def test_kenlm_binaries_are_read_by_kenlm(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "any name"
    path.write_bytes((DATA / f"tiny_{kind}.bin").read_bytes())
    model = open_language_model(path)
    assert isinstance(model, KenlmModel)
    assert (model.order, model.path) == (3, str(path))
    assert "cat" in model
    assert "stranger" not in model
    ours = open_language_model(ARPA)
    again = pickle.loads(pickle.dumps(model))
    rng = random.Random(0)
    for _ in range(100):
        if rng.random() < 0.5:
            state, our_state = model.begin_state, ours.begin_state
        else:
            state, our_state = model.null_state, ours.null_state
        for _ in range(6):
            word = rng.choice(["the", "cat", "sat", "on", "a", "mat", "</s>", "stranger"])
            assert again.score(state, word)[0] == model.score(state, word)[0]
            prob, state = model.score(state, word)
            our_prob, our_state = ours.score(our_state, word)
            assert struct.pack("f", prob) == struct.pack("f", our_prob)


def bad_files(tmp_path: Path) -> dict[str, tuple[bytes, str]]:
    flat = compiled(tmp_path).read_bytes()
    packed = gzip.compress(ARPA.read_bytes())
    return {
        "empty": (b"", "no ARPA file"),
        "text": (b"hello\n", "no ARPA file"),
        "an arpa cut short": (ARPA.read_bytes()[:900], "line 42"),
        "a gzip cut short": (packed[:-20], "ended before"),
        "a gzip damaged": (packed[:200] + b"xxxxxxxxxx" + packed[210:], "a gzip damaged"),
        "a compiled model cut short": (flat[:-8], "cut short"),
        "a compiled model cut in its header": (flat[:40], "header"),
        "a compiled model with a damaged header": (flat[:60] + b"x" + flat[61:], "damaged"),
        "a compiled model of another version": (flat[:8] + b"\x09" + flat[9:], "version 9"),
        "a compiled model of another machine": (flat[:12] + b"\1\2\3\4" + flat[16:], "byte order"),
        "a compressed compiled model": (gzip.compress(flat), "gunzip"),
        "a kenlm binary cut short": ((DATA / "tiny_trie.bin").read_bytes()[:100], "kenlm cannot read"),
    }


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    for name, (data, reason) in bad_files(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(LanguageModelError, match=reason) as caught:
            open_language_model(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("none.arpa", "does not exist"),
        ("", "is a folder; name a file"),
        ("zip://x::s3://bucket/y", "chained"),
        ("ftp://host/model.arpa", "protocol"),
    ],
)
def test_places_that_cannot_be_used(path: str, reason: str) -> None:
    with pytest.raises(LanguageModelError, match=reason):
        open_language_model(path)


def test_a_model_in_a_store_is_copied_once(
    s3: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(f"{s3}/models/tiny", compiled(tmp_path).read_bytes())
    model = open_language_model(url)
    assert isinstance(model, NgramModel)
    assert model.path is not None
    assert Path(model.path).parent == cache
    with monkeypatch.context() as patch:
        patch.setattr(language_model, "_copy", lambda *_: pytest.fail("copied again"))
        assert open_language_model(url).path == model.path
        assert open_language_model(url.replace("s3://", "s3a://")).path == model.path
    put(url, ARPA.read_bytes())  # another version of the file
    assert open_language_model(url).path is None
    assert model.score(model.begin_state, "the")[0] < 0  # the one that is mapped stays
    assert len([name for name in os.listdir(cache) if not name.endswith(".lock")]) == 2


def test_stores_without_the_model(s3: str, cache: Path) -> None:
    put(f"{s3}/folder/file", b"x")
    for url in (f"{s3}/none.arpa", f"{s3}/folder"):
        with pytest.raises(LanguageModelError, match="does not exist or is a folder"):
            open_language_model(url)
    with pytest.raises(LanguageModelError, match="no ARPA file"):
        open_language_model(f"{s3}/folder/file")


def test_a_copy_that_fails_leaves_nothing(s3: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(f"{s3}/tiny.arpa", ARPA.read_bytes())

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", fail)
        with pytest.raises(LanguageModelError, match=r"No space left.*W2V_RAY_CACHE"):
            open_language_model(url)
    assert [name for name in os.listdir(cache) if not name.endswith(".lock")] == []
    assert open_language_model(url).order == 3


def _open_and_count(url: str, counter: str) -> tuple[int, float]:
    """Opens a model as one of several processes, and notes each copy that is made."""
    real = language_model._copy

    def counted(*args: object) -> None:
        with open(counter, "ab") as file:
            file.write(b"x")
        real(*args)  # type: ignore[arg-type]

    language_model._copy = counted  # type: ignore[assignment]
    model = open_language_model(url)
    return model.order, model.score(model.begin_state, "the")[0]


def test_many_processes_copy_a_model_once(s3: str, tmp_path: Path) -> None:
    url = put(f"{s3}/tiny.w2vlm", compiled(tmp_path).read_bytes())
    counter = tmp_path / "copies"
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        found = pool.starmap(_open_and_count, [(url, str(counter))] * 6)
    assert set(found) == {(3, found[0][1])}
    assert counter.read_bytes() == b"x"


def test_where_copies_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == Path(os.environ["W2V_RAY_CACHE"])
    monkeypatch.delenv("W2V_RAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/w2v-ray")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "w2v-ray"


def test_the_version_of_a_file_is_known_to_stores(s3: str) -> None:
    found = stores.info(put(f"{s3}/x", b"one"))
    assert found is not None
    assert found.version is not None  # what tells one copy from the next
