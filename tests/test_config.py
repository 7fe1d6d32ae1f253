from __future__ import annotations

import pickle
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.align_config import AlignConfig
from w2v_ray.config import JobConfig, RedecodeConfig
from w2v_ray.decoder_config import DecoderConfig
from w2v_ray.errors import ConfigError

REQUIRED = {"inputs": ("speech",), "output": "out", "model": "model"}


def job(**settings: object) -> JobConfig:
    return JobConfig(**(REQUIRED | settings))


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("inputs", (), "at least one"),
        ("inputs", ("a", " "), "inputs[1] is ' ', expected a path or URL"),
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
        ("hotwords", ("one", ""), "hotwords[1] is '', expected words; take out what is empty"),
        ("hotwords", ("one", 2), "hotwords[1] is 2 (a whole number), expected text; put it in quotes"),
        ("lm", ["a"], "lm is ['a'] (a list), expected text or null; write one value after `lm:`"),
        ("shard_seconds", 10**400, "a number of 401 digits"),
        ("also", ("embed=a", "turns=b"), "also[1] is 'turns=b', expected TASK=CHECKPOINT"),
        ("also", ("embed=a", "embed=b"), "also[1] is 'embed=b', and embed is done already"),
        ("hotword_weight", 5.0, "name hotwords too"),
        ("beam_width", 0, "1 to 10000"),
        ("beam_prune_logp", -5.0, "set beam_width, or name lm or hotwords too"),
        ("token_min_logp", -5.0, "set beam_width, or name lm or hotwords too"),
        ("token_min_logp", 1, "-1000 to 0"),
        ("characters", 1, "true or false"),
        ("decoder_threads", 0, "1 or more"),
        ("keep_log_probs", 1, "2 to 65536"),
        ("dtype", "fp16", "float32, float16, bfloat16, int8"),
        ("max_batch_seconds", 0, "0.001 to 10000000"),
        ("reference_batch", 0, "1 to 4096"),
        ("chunk_length_s", 0.4, "0.5 to 300"),
        ("stride_length_s", 2, "set chunk_length_s"),
        ("normalize", "all", "chunk, segment"),
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
        "max_batch_seconds": 30.0,
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
    encoder = {
        "deterministic": True,
        "chunk_length_s": 20.0,
        "stride_length_s": 2.0,
        "normalize": "segment",
    }
    other |= encoder | {"reference_batch": 8}
    languages = {"language_key": "language", "language": "fra", "languages_from": "labelled"}
    names = {field.name for field in fields(JobConfig)}
    assert other.keys() | languages.keys() | {"task"} == names, "a new field must be placed here"
    also = ("embed=speakers", "classify=labels", "frames=turns")
    one = job(lm="lm.arpa", hotwords=("two",), vad="speech:find", also=also, chunk_length_s=25.0)
    changes = {
        name
        for name, value in other.items()
        if name != "reference_batch"
        and replace(one, **{name: value}).fingerprint_fields() != one.fingerprint_fields()
    }
    assert changes == {
        *("model", "revision", "attn_implementation", "dtype"),
        *("shard_seconds", "max_segment_seconds", "keep_log_probs", "partition_by"),
        *("channel", "on_truncated", "vad", "keep_non_speech"),
        *encoder,
        *search,
        *heads,
    }
    assert job(reference_batch=8).fingerprint_fields() == job().fingerprint_fields() | {"reference_batch": 8}
    assert job(task="embed").fingerprint_fields() != job().fingerprint_fields()
    for name, value in languages.items():
        made = job(**{name: value})
        assert made.language_fields() == {name: value}
        assert made.fingerprint_fields() == job().fingerprint_fields() | {name: value}


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
