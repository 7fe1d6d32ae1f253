from __future__ import annotations

import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.align_config import AlignConfig
from w2v_ray.config import JobConfig, RedecodeConfig, load_job
from w2v_ray.decoder_config import DecoderConfig
from w2v_ray.errors import ConfigError

REQUIRED = {"inputs": ("speech",), "output": "out", "model": "model"}
ROOT = Path(__file__).resolve().parents[1]


def job(**settings: object) -> JobConfig:
    return JobConfig(**(REQUIRED | settings))


def job_file(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


MINIMAL = "inputs: [speech]\noutput: out\nmodel: model\n"


def test_a_minimal_file_takes_every_default(tmp_path: Path) -> None:
    assert load_job(job_file(tmp_path, MINIMAL)) == job()


def test_every_field_can_be_set_in_a_file(tmp_path: Path) -> None:
    text = """
        inputs: [a/*.flac, s3://bucket/b]
        output: s3://bucket/out
        model: org/name
        revision: "1.0"
        audio_column: sound
        device: cuda:1
        attn_implementation: eager
        dtype: bfloat16
        shard_seconds: 600
        max_segment_seconds: 20.5
        channel: 1
        on_truncated: reject
        vad: speech.detect:find
        keep_non_speech: false
        num_encoders: 2
        max_encoders: 8
        gpus_per_encoder: 0.5
        accelerator_type: L4
        encoder_threads: 4
        num_decoders: 3
        decoder_threads: 2
        keep_log_probs: 16
        max_reject_rate: 0.01
        item_deadline_seconds: 60
        stall_seconds: 900
        on_change: new
        partition_by: speaker
        language_key: null
        language: null
        languages_from: null
        lm: lm.arpa
        alpha: 0.7
        beta: -1
        unigrams: words.txt
        hotwords: [one, two three]
        hotword_weight: 5
        beam_width: 50
        beam_prune_logp: -12.5
        token_min_logp: -6
        characters: true
        stores: {s3: {endpoint_url: "https://minio:9000"}}
        allow_http: true
        task: transcribe
        also: [embed=speakers, classify=labels, frames=turns]
        pooling: mean+std
        layer: 3
        embedding_dtype: float16
        top_k: 2
        threshold: 0.3
        activation: softmax
        onset: 0.7
        offset: 0.4
        min_on_seconds: 0.2
        min_off_seconds: 0.1
    """
    loaded = load_job(job_file(tmp_path, text))
    assert loaded == JobConfig(
        inputs=("a/*.flac", "s3://bucket/b"),
        output="s3://bucket/out",
        model="org/name",
        revision="1.0",
        audio_column="sound",
        device="cuda:1",
        attn_implementation="eager",
        dtype="bfloat16",
        shard_seconds=600.0,
        max_segment_seconds=20.5,
        channel=1,
        on_truncated="reject",
        vad="speech.detect:find",
        keep_non_speech=False,
        num_encoders=2,
        max_encoders=8,
        gpus_per_encoder=0.5,
        accelerator_type="L4",
        encoder_threads=4,
        num_decoders=3,
        decoder_threads=2,
        keep_log_probs=16,
        max_reject_rate=0.01,
        item_deadline_seconds=60.0,
        stall_seconds=900.0,
        on_change="new",
        partition_by="speaker",
        lm="lm.arpa",
        alpha=0.7,
        beta=-1.0,
        unigrams="words.txt",
        hotwords=("one", "two three"),
        hotword_weight=5.0,
        beam_width=50,
        beam_prune_logp=-12.5,
        token_min_logp=-6.0,
        characters=True,
        stores={"s3": {"endpoint_url": "https://minio:9000"}},
        allow_http=True,
        also=("embed=speakers", "classify=labels", "frames=turns"),
        pooling="mean+std",
        layer=3,
        embedding_dtype="float16",
        top_k=2,
        threshold=0.3,
        activation="softmax",
        onset=0.7,
        offset=0.4,
        min_on_seconds=0.2,
        min_off_seconds=0.1,
    )
    assert isinstance(loaded.shard_seconds, float)
    assert {field.name for field in fields(JobConfig)} == {
        line.split(":")[0].strip() for line in text.split("\n")
    } - {""}


def test_overrides_replace_and_add_in_order(tmp_path: Path) -> None:
    path = job_file(tmp_path, MINIMAL + "dtype: float16\n")
    loaded = load_job(
        path, ["dtype=float32", "num_encoders=2", "num_encoders=3", "inputs=[a, b]", "revision=null"]
    )
    assert loaded == job(inputs=("a", "b"), num_encoders=3)


def test_overrides_can_supply_what_the_file_lacks(tmp_path: Path) -> None:
    path = job_file(tmp_path, "inputs: [speech]\nmodel: model\n")
    assert load_job(path, ["output=s3://bucket/a=b"]).output == "s3://bucket/a=b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            MINIMAL + "shard_second: 60\n",
            ["unknown key 'shard_second'", "nearest valid key is 'shard_seconds'"],
        ),
        (MINIMAL + "encoder:\n  dtpye: float16\n", ["'encoder.dtpye'", "'dtype'"]),
        (MINIMAL + "zzz: 1\n", ["unknown key 'zzz'", "valid keys are inputs, output, model"]),
        ("inputs: [speech]\n", ["lacks output, model", "key=value"]),
        (MINIMAL + "model: other\n", ["sets 'model' twice"]),
        (MINIMAL + "num_encoders: two\n", ["num_encoders is 'two' (text)", "whole number or null", "digits"]),
        (MINIMAL + "shard_seconds: 1e3\n", ["shard_seconds is '1e3' (text)", "a number"]),  # text in YAML 1.1
        (MINIMAL + "revision: 1.0\n", ["revision is 1.0 (a number)", "text or null", "quotes"]),
        (MINIMAL + "device:\n", ["device is None (nothing)", "leave the key out"]),
        (
            "inputs: speech\noutput: out\nmodel: m\n",
            ["inputs is 'speech' (text)", "write `inputs: [FIRST, SECOND]`"],
        ),
        ("inputs: [1]\noutput: out\nmodel: m\n", ["inputs is [1]", "a list of text"]),
        (MINIMAL + "stores: s3\n", ["stores is 's3' (text)", "a mapping or null", "write `stores: {NAME"]),
        (MINIMAL + "stores: {s3: {secret: hunter2}}\n", ["stores.s3.secret looks like a secret"]),
        ("- a\n- b\n", ["holds a list", "key: value"]),
        ("", ["holds nothing", "key: value"]),
        ("inputs: [speech\n", ["is not YAML"]),
        ("output: 2026-13-01\n", ["is not YAML", "month"]),
    ],
)
def test_a_bad_file_is_one_sentence_with_the_fix(tmp_path: Path, text: str, words: list[str]) -> None:
    path = job_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    message = str(caught.value)
    assert str(path) in message
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("devcie=cpu", ["override 'devcie=cpu'", "unknown key 'devcie'", "'device'"]),
        ("device", ["override 'device' has no '='"]),
        ("device=[cpu", ["override 'device=[cpu'", "not YAML"]),
    ],
)
def test_a_bad_override_is_named(tmp_path: Path, override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_job(job_file(tmp_path, MINIMAL), [override])
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_a_missing_file_and_a_binary_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml' does not exist"):
        load_job(tmp_path / "nothing.yaml")
    binary = tmp_path / "clip.wav"
    binary.write_bytes(b"RIFF\xff\xff\x00WAVE")
    with pytest.raises(ConfigError, match=r"clip\.wav' cannot be read as text"):
        load_job(binary)
    with pytest.raises(ConfigError, match="cannot be read as text"):
        load_job(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("inputs", (), "at least one"),
        ("inputs", ("a", " "), "a path or URL"),
        ("output", "", "a path or URL"),
        ("model", "", "a path or URL"),
        ("device", "gpu", "cuda:N"),
        ("device", "cuda:", "cuda:N"),
        ("attn_implementation", "flash", "auto, eager, sdpa, flash_attention_2, flex_attention"),
        ("lm", " ", "a path or URL"),
        ("alpha", -0.1, "0 to 100"),
        ("alpha", "0.5", "a number or null"),
        ("alpha", 0.5, "name lm too"),
        ("beta", 1.5, "name lm too"),
        ("unigrams", "words.txt", "name lm too"),
        ("hotwords", "one", "a list of text"),
        ("hotwords", ("one", ""), "take out what is empty"),
        ("hotword_weight", 5.0, "name hotwords too"),
        ("beam_width", 0, "1 to 10000"),
        ("beam_prune_logp", -5.0, "set beam_width, or name lm or hotwords too"),
        ("token_min_logp", -5.0, "set beam_width, or name lm or hotwords too"),
        ("token_min_logp", 1, "-1000 to 0"),
        ("characters", 1, "true or false"),
        ("decoder_threads", 0, "1 or more"),
        ("keep_log_probs", 1, "2 to 65536"),
        ("dtype", "fp16", "float32, float16, bfloat16"),
        ("shard_seconds", 9.9, "10 to 7200"),
        ("shard_seconds", 7201, "10 to 7200"),
        ("shard_seconds", float("nan"), "10 to 7200"),
        ("shard_seconds", True, "a number"),
        ("max_segment_seconds", 0.5, "1 to 300"),
        ("max_segment_seconds", 301, "1 to 300"),
        ("max_reject_rate", -0.1, "0 to 1"),
        ("max_reject_rate", 5, "0 to 1"),
        ("num_encoders", 0, "1 or more"),
        ("num_encoders", True, "whole number"),
        ("max_encoders", 0, "1 or more"),
        ("gpus_per_encoder", 0, "0.01 to 1"),
        ("gpus_per_encoder", 2, "0.01 to 1"),
        ("accelerator_type", " ", "a name such as L4"),
        ("encoder_threads", -1, "1 or more"),
        ("num_decoders", 1.0, "whole number"),
    ],
)
def test_a_bad_value_is_named_with_its_bound(name: str, value: object, bound: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job(**{name: value})
    assert name in str(caught.value)
    assert bound in str(caught.value)


def test_placements_that_contradict_each_other_are_refused() -> None:
    for setting in ({"accelerator_type": "L4"}, {"gpus_per_encoder": 0.5}):
        (name,) = setting
        with pytest.raises(ConfigError, match=f"{name} is .* but device is 'cpu'"):
            job(device="cpu", **setting)
    with pytest.raises(ConfigError, match="max_encoders is 2 and num_encoders 3"):
        job(num_encoders=3, max_encoders=2)
    assert job(accelerator_type="L4").wants_gpu
    assert not job().wants_gpu


@settings(deadline=None)  # a busy machine is no failure
@given(
    shard_seconds=st.floats(10, 7200),
    max_segment_seconds=st.floats(1, 300),
    max_reject_rate=st.floats(0, 1),
    count=st.none() | st.integers(1, 10_000),
)
def test_everything_within_bounds_is_accepted_and_travels(
    shard_seconds: float, max_segment_seconds: float, max_reject_rate: float, count: int | None
) -> None:
    made = job(
        shard_seconds=shard_seconds,
        max_segment_seconds=max_segment_seconds,
        max_reject_rate=max_reject_rate,
        num_encoders=count,
    )
    assert pickle.loads(pickle.dumps(made)) == made


def test_the_fingerprint_follows_what_changes_rows_and_nothing_else() -> None:
    search = {
        "lm": "other.arpa",
        "alpha": 0.4,
        "beta": 1.0,
        "unigrams": "words.txt",
        "hotwords": ("one",),
        "hotword_weight": 3.0,
        "beam_width": 50,
        "beam_prune_logp": -5.0,
        "token_min_logp": -4.0,
        "characters": True,
    }
    heads = {
        "also": ("embed=speakers", "frames=turns", "classify=others"),
        "pooling": "mean+std",
        "layer": 2,
        "embedding_dtype": "float16",
        "top_k": 2,
        "threshold": 0.3,
        "activation": "softmax",
        "onset": 0.7,
        "offset": 0.4,
        "min_on_seconds": 0.2,
        "min_off_seconds": 0.1,
    }
    other = {
        "inputs": ("elsewhere",),
        "output": "elsewhere",
        "model": "other",
        "revision": "main",
        "audio_column": "sound",
        "device": "cpu",
        "attn_implementation": "eager",
        "dtype": "float16",
        "shard_seconds": 60.0,
        "max_segment_seconds": 10.0,
        "channel": 1,
        "on_truncated": "reject",
        "vad": "speech:other",
        "keep_non_speech": False,
        "num_encoders": 2,
        "max_encoders": 4,
        "gpus_per_encoder": 0.5,
        "accelerator_type": "L4",
        "encoder_threads": 2,
        "num_decoders": 2,
        "decoder_threads": 2,
        "max_reject_rate": 0.5,
        "item_deadline_seconds": 60.0,
        "stall_seconds": 900.0,
        "keep_log_probs": 8,
        "stores": {"s3": {"profile": "lab"}},
        "allow_http": True,
        "on_change": "new",
        "partition_by": "speaker",
        **search,
        **heads,
    }
    languages = {"language_key": "language", "language": "fra", "languages_from": "labelled"}
    names = {field.name for field in fields(JobConfig)}
    assert other.keys() | languages.keys() | {"task"} == names, "a new field must be placed here"
    also = ("embed=speakers", "classify=labels", "frames=turns")
    one = job(lm="lm.arpa", hotwords=("two",), vad="speech:find", also=also)
    changes = {
        name
        for name, value in other.items()
        if replace(one, **{name: value}).fingerprint_fields() != one.fingerprint_fields()
    }
    assert changes == {
        *("model", "revision", "attn_implementation", "dtype"),
        *("shard_seconds", "max_segment_seconds", "keep_log_probs", "partition_by"),
        *("channel", "on_truncated", "vad", "keep_non_speech"),
        *search,
        *heads,
    }
    assert job(task="embed").fingerprint_fields() != job().fingerprint_fields()
    for name, value in languages.items():
        made = job(**{name: value})
        assert made.language_fields() == {name: value}
        assert made.fingerprint_fields() == job().fingerprint_fields() | {name: value}


def test_the_job_file_of_the_project_loads() -> None:
    assert load_job(ROOT / "pipelines" / "transcribe.yaml").output


def test_the_settings_of_the_decoder_can_be_taken_alone() -> None:
    made = job(lm="lm.arpa", alpha=1, hotwords=["one"], num_decoders=2)
    assert made.decoder() == DecoderConfig(lm="lm.arpa", alpha=1.0, hotwords=("one",))
    assert made.decoder().search_fields() == {"lm": "lm.arpa", "alpha": 1.0, "hotwords": ["one"]}
    assert made.is_search
    assert not job(characters=True).is_search
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [("source", " ", "a path or URL"), ("output", "", "a path or URL"), ("num_decoders", 0, "1 or more")],
)
def test_a_bad_value_of_redecoding_is_named(name: str, value: object, bound: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} .*{bound}"):
        RedecodeConfig(**({"source": "out", "output": "again"} | {name: value}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"partition_by": "_lang"}, "partition_by is '_lang', expected a key .* dot or an underscore"),
        (
            {"channel": "centre"},
            "channel is 'centre', expected mix, left, right, split or a number from 0 to 31",
        ),
        ({"channel": 32}, "channel is 32, expected"),
        ({"channel": 1.5}, r"channel is 1.5 \(a number\), expected text or a whole number"),
        ({"on_truncated": "drop"}, "on_truncated is 'drop', expected one of mark, reject"),
        ({"vad": "speech.find"}, "vad is 'speech.find', expected MODULE:FUNCTION"),
        ({"vad": "speech:find()"}, "expected MODULE:FUNCTION"),
        ({"keep_non_speech": False}, "keep_non_speech is false, which has no effect by itself; name vad too"),
    ],
)
def test_settings_of_audio_are_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        job(**changes)
    assert job(channel="3").channel == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"language_key": ""}, "language_key is '', expected a text; fill it in, or leave it out"),
        ({"language": " "}, "language is ' ', expected a text"),
        ({"languages_from": ""}, "languages_from is '', expected a text"),
        ({"language": 7}, "language is 7"),
        (
            {"language": "fra", "task": "embed"},
            "language is 'fra', which only transcribe and align have",
        ),
        (
            {"language_key": "lang", "also": ("embed",)},
            "which only transcribe alone has a use",
        ),
        (
            {"language_key": "lang", "lm": "a.arpa"},
            "lm is 'a.arpa', which is of one language",
        ),
        (
            {"languages_from": "out", "hotwords": ("Ada",)},
            "hotwords is .*languages_from tells of several",
        ),
        (
            {"language_key": "lang", "lm": "a.arpa", "unigrams": "a.txt"},
            "or do each language by itself",
        ),
    ],
)
def test_settings_of_languages_are_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        job(**changes)
    job(language="fra", lm="lm.arpa", hotwords=("Ada",))
    AlignConfig(inputs=("a",), output="out", model="m", language_key="lang")


def test_a_text_is_not_aligned_with_every_channel() -> None:
    with pytest.raises(ConfigError, match="channel is 'split', and a text is of one signal"):
        AlignConfig(inputs=("a",), output="out", model="m", channel="split")
    assert AlignConfig(inputs=("a",), output="out", model="m", channel="left").channel == "left"
