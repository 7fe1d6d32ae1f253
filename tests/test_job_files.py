"""Job files: what they hold is checked to the last key, and variables put nothing but texts into them."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import s3fs
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2v_ray.align_config import AlignConfig
from w2v_ray.config import JobConfig, RedecodeConfig
from w2v_ray.errors import ConfigError
from w2v_ray.job_file import FILE_TASKS, config_class, load_job, read_override
from w2v_ray.store_config import S3_OPTIONS
from w2v_ray.variables import fill, plain_value

REQUIRED = {"inputs": ("speech",), "output": "out", "model": "model"}


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
        max_batch_seconds: 40
        reference_batch: null
        deterministic: true
        chunk_length_s: 20
        stride_length_s: 2.5
        normalize: segment
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
        max_batch_seconds=40.0,
        deterministic=True,
        chunk_length_s=20.0,
        stride_length_s=2.5,
        normalize="segment",
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
        ("inputs: [1]\noutput: out\nmodel: m\n", ["inputs[0] is 1 (a whole number)", "quotes"]),
        (MINIMAL + "lm: [a]\n", ["lm is ['a'] (a list)", "text or null", "write one value after `lm:`"]),
        (MINIMAL + "shard_seconds: yes\n", ["shard_seconds is True (a truth value)", "a number"]),
        (MINIMAL + "revision: 2026-11-22\n", ["revision is datetime.date", "(a date)", "quotes"]),
        (MINIMAL + "also: [embed=a, turns=b]\n", ["also[1] is 'turns=b'", "TASK=CHECKPOINT"]),
        (MINIMAL + "also: &a [*a]\n", ["also[0] holds itself by an alias"]),
        (MINIMAL + "stores: {s3: {profile: a, profile: b}}\n", ["sets 'stores.s3.profile' twice"]),
        (MINIMAL + "stores: {S3: {profile: a}}\n", ["stores.S3 is no store", "s3, gs, az"]),
        (
            MINIMAL + "stores: {s3: {max_request: 3}}\n",
            ["stores.s3.max_request is no option", "nearest valid key is 'max_requests'"],
        ),
        (
            MINIMAL + "stores: {s3: {max_connections: 3}}\n",
            ["stores.s3.max_connections is no option", "nearest valid key is 'connect_timeout_s'"],
        ),
        (MINIMAL + "stores: {gs: {attemps: 3}}\n", ["stores.gs.attemps", "'attempts'"]),
        (MINIMAL + "stores: {s3: {attempts: many}}\n", ["stores.s3.attempts is 'many'", "1 to 20"]),
        (MINIMAL + "task: transcrib\n", ["task is 'transcrib'", "align, redecode", "'transcribe'"]),
        (MINIMAL + "task: [embed]\n", ["task is ['embed']", "expected one of"]),
        (MINIMAL + "text_key: text\n", ["text_key is 'text'", "'transcribe' has no use for"]),
        (MINIMAL + "task: align\nlm: a.arpa\n", ["lm is 'a.arpa'", "only transcribe has a use for"]),
        (MINIMAL + "task: redecode\n", ["inputs is ['speech'], which 'redecode' has no use for"]),
        ("task: redecode\nlm: a.arpa\n", ["lacks source, output"]),
        ("task: redecode\nsource: a\noutput: b\nsourc: c\n", ["unknown key 'sourc'", "'source'"]),
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
        ("device=gpu", ["job.yaml: override 'device=gpu': device is 'gpu'"]),
        ("task=algn", ["override 'task=algn'", "'align'"]),
        ("stores={s3: {a: 1, a: 2}}", ["sets 'stores.s3.a' twice"]),
        (
            "stores.s3.attempts=3",
            ["key 'stores.s3.att", "give 'stores' the mapping {s3: {attempts: V"],
        ),
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


def test_the_task_says_what_a_file_is(tmp_path: Path) -> None:
    aligned = load_job(job_file(tmp_path, MINIMAL + "task: align\ntext_key: sentence\n"))
    assert aligned == AlignConfig(**REQUIRED, text_key="sentence")
    again = load_job(job_file(tmp_path, "task: redecode\nsource: out\noutput: again\nlm: a.arpa\nalpha: 1\n"))
    assert again == RedecodeConfig(source="out", output="again", lm="a.arpa", alpha=1.0)
    for task in ("embed", "classify", "frames"):
        assert load_job(job_file(tmp_path, MINIMAL), [f"task={task}"]) == job(task=task)


def test_every_field_of_every_kind_is_a_key(tmp_path: Path) -> None:
    """Each at its default, as YAML writes it, where it has one."""
    for task in FILE_TASKS:
        kind = config_class(task)
        given = {"inputs": ["a"], "output": "out", "model": "m", "source": "out"}
        names = {field.name for field in fields(kind)}
        values = {field.name: given.get(field.name, field.default) for field in fields(kind)}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        loaded = load_job(job_file(tmp_path, yaml.safe_dump(values | {"task": task})))
        assert type(loaded) is kind
        assert {name for name, value in asdict(loaded).items() if value is not None} <= names


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("s3://bucket/${DAY}", "s3://bucket/2026-11-22"),
        ("${DAY}${DAY}", "2026-11-222026-11-22"),
        ("${NIGHT:-now}", "now"),
        ("${NIGHT:-}", ""),
        ("${EMPTY:-full}", "full"),
        ("${DAY:-never}", "2026-11-22"),
        ("$DAY and $ and }", "$DAY and $ and }"),
        ("$${DAY}", "${DAY}"),
        ("$$${DAY}", "$${DAY}"),
        ("${NESTED}", "${DAY}"),  # what a variable holds is not looked into
        ("${LINES}", "a\nmodel: b"),
    ],
)
def test_variables_are_filled_in(text: str, filled: str) -> None:
    environment = {"DAY": "2026-11-22", "EMPTY": "", "NESTED": "${DAY}", "LINES": "a\nmodel: b"}
    assert fill(text, where="output", environment=environment) == filled


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("${NIGHT}", "output takes the variable NIGHT, which is not set; set it, or write ${NIGHT:-DEFAULT}"),
        ("${EMPTY}", "output takes the variable EMPTY, which is empty; set it"),
        ("a/${DAY", "output is 'a/${DAY', in which a variable is not closed"),
        ("${A-b}", "not closed or not named as one; write ${NAME} or ${NAME:-DEFAULT}"),
        ("${A:-${DAY}}", "not closed"),
        ("${1}", "not closed or not named"),
        ("${}", "or $${ for the characters themselves"),
    ],
)
def test_a_variable_that_gives_nothing_is_an_error(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        fill(text, where="output", environment={"EMPTY": "", "DAY": "1"})


@settings(deadline=None, max_examples=40)
@given(st.text(), st.text())
def test_a_value_becomes_a_part_of_the_text_whatever_it_holds(value: str, text: str) -> None:
    rest = text.replace("${", "$${")
    held = value or "0"
    assert fill("${A}" + rest, where="x", environment={"A": held}) == held + fill(rest, where="x")
    assert fill(rest, where="x") == text


def test_numbers_may_come_from_variables_and_texts_stay_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"N": "2", "S": "6e2", "REV": "1.0", "DAY": "2026-11-22", "YES": "true"}.items():
        monkeypatch.setenv(name, value)
    text = """
        inputs: ["s3://bucket/${DAY}", "${DAY}"]
        output: ${DAY}
        model: ${YES}
        revision: ${REV}
        num_encoders: ${N}
        num_decoders: ${NO:-3}
        encoder_threads: ${NO:-}
        shard_seconds: ${S}
        characters: ${YES}
        audio_column: ${NO:-}
        channel: ${N}
        stores: {s3: {attempts: "${N}", profile: "${N}", max_requests: 3}}
    """
    loaded = load_job(job_file(tmp_path, text))
    assert loaded == JobConfig(
        inputs=("s3://bucket/2026-11-22", "2026-11-22"),
        output="2026-11-22",
        model="true",
        revision="1.0",
        num_encoders=2,
        num_decoders=3,
        shard_seconds=600.0,
        characters=True,
        channel=2,
        stores={"s3": {"attempts": "${N}", "profile": "${N}", "max_requests": 3}},
    )
    assert loaded.store_config.options == {"s3": {"attempts": 2, "profile": "2", "max_requests": 3}}
    assert load_job(job_file(tmp_path, MINIMAL), ["output=out/${DAY}"]).output == "out/2026-11-22"
    assert read_override("text_key=${DAY}", AlignConfig) == {"text_key": "2026-11-22"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + "lm: ${GONE}\n", ["job.yaml: lm takes the variable GONE, which is not set"]),
        (MINIMAL + "hotwords: [a, '${GONE}']\n", ["job.yaml: hotwords[1] takes the variable GONE"]),
        (MINIMAL + "inputs: [s3://${DAY}]\n", ["is not YAML", "put texts with ${...} into quotes"]),
        (MINIMAL + "num_encoders: ${LIST}\n", ["num_encoders is '[1, 2]' (text), expected a whole number"]),
        (MINIMAL + "hotwords: ${LIST}\n", ["hotwords is '[1, 2]' (text), expected a list of text"]),
        (MINIMAL + "task: ${GONE}\n", ["task takes the variable GONE"]),
        (
            MINIMAL + "stores: {s3: {endpoint_url: '${GONE}'}}\n",
            ["job.yaml: stores.s3.endpoint_url takes the variable GONE"],
        ),
        (
            MINIMAL + "stores: {s3: {client_kwargs: {a: [x, '${GONE}']}}}\n",
            ["job.yaml: stores.s3.client_kwargs.a[1] takes the variable GONE"],
        ),
        (MINIMAL + "stores: {s3: {attempts: '${LIST}'}}\n", ["stores.s3.attempts is '[1, 2]', expected 1"]),
    ],
)
def test_a_bad_variable_in_a_file_is_named_with_its_key(
    tmp_path: Path, text: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIST", "[1, 2]")
    with pytest.raises(ConfigError) as caught:
        load_job(job_file(tmp_path, text.replace("inputs: [speech]\n", "", text.count("inputs") - 1)))
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("12", 12), ("-3", -3), ("1e3", 1000.0), (".5", 0.5), ("true", True), ("no", "no"), ("0x1", "0x1")],
)
def test_plain_values_are_numbers_and_truth_values(text: str, value: object) -> None:
    assert plain_value(text) == value
    assert type(plain_value(text)) is type(value)


def test_a_secret_that_a_variable_holds_is_refused_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "https://user:canary@host")
    for option in ("endpoint_url: '${PLACE}'", "client_kwargs: {aws_secret_access_key: '${PLACE}'}"):
        with pytest.raises(ConfigError, match="settings never hold") as caught:
            load_job(job_file(tmp_path, MINIMAL + f"stores: {{s3: {{{option}}}}}\n"))
        assert "canary" not in str(caught.value)


def test_the_known_options_of_s3_are_those_of_s3fs() -> None:
    parameters = set(inspect.signature(s3fs.S3FileSystem.__init__).parameters) - {"self", "kwargs"}
    secrets_and_objects = {
        "key",
        "secret",
        "token",
        "username",
        "password",
        "session",
        "asynchronous",
        "loop",
    }
    assert parameters - secrets_and_objects - {"local_expiry_check"} == {*S3_OPTIONS} - {"profile"}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    task=st.sampled_from(FILE_TASKS),
    name=st.sampled_from([field.name for field in fields(AlignConfig)] + ["source"]),
    value=ANYTHING,
)
def test_whatever_a_key_holds_is_taken_or_told_in_one_sentence(
    tmp_path: Path, task: str, name: str, value: Any
) -> None:
    needed: dict[str, Any] = {"source": "a"} if task == "redecode" else {"inputs": ["a"], "model": "m"}
    path = job_file(tmp_path, yaml.safe_dump(needed | {"output": "out", "task": task} | {name: value}))
    try:
        loaded = load_job(path)
    except ConfigError as error:
        said = str(error)
    else:
        held = getattr(loaded, name)
        assert held == value or json.dumps(held) == json.dumps(value) or str(held) == str(value), (
            held,
            value,
        )
        return
    assert said.startswith(f"{path}: {name}") or f"unknown key '{name}" in said, said
    assert "; " in said
