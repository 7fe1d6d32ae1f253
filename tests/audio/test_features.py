"""The feature extractor, against transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils import PaddingStrategy, TensorType

from w2v_ray.audio.features import BatchFeature, Wav2Vec2FeatureExtractor, zero_mean_unit_variance
from w2v_ray.errors import CheckpointError, EmptyAudioError, OutputError

RATE = 16_000


def waves(lengths: list[int], seed: int = 0, dtype: str = "float32") -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [(generator.normal(size=n) * 0.1 + 0.02).astype(dtype) for n in lengths]


def assert_same(found: Any, expected: Any) -> None:
    """The same features, as far as float32 goes, in containers of the same kind if they are tensors."""
    assert found.keys() == expected.keys()
    for name in expected:
        theirs, ours = expected[name], found[name]
        if isinstance(theirs, torch.Tensor):
            assert ours.dtype == theirs.dtype
        assert len(ours) == len(theirs)
        for row, wanted in zip(ours, theirs, strict=True):
            assert np.asarray(row).dtype == np.asarray(wanted).dtype
            np.testing.assert_allclose(np.asarray(row), np.asarray(wanted), rtol=1e-5, atol=1e-6)


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "padding": st.sampled_from(
            [True, True, False, "longest", "max_length", "do_not_pad", *PaddingStrategy]
        ),
        "max_length": st.one_of(st.integers(1, 40), st.integers(1, 40), st.none()),
        "truncation": st.booleans(),
        "pad_to_multiple_of": st.sampled_from([None, 1, 8, 10]),
        "return_attention_mask": st.sampled_from([None, True, False]),
        "return_tensors": st.sampled_from([None, "np", "pt", TensorType.NUMPY, TensorType.PYTORCH]),
    },
)


@settings(max_examples=1600, deadline=None)  # some that transformers cannot stack are not compared
@given(
    lengths=st.lists(st.integers(2, 50), min_size=1, max_size=4),
    form=st.sampled_from(["float32", "float64", "lists", "one", "one list", "array", "float64 array"]),
    rate=st.sampled_from([None, RATE, RATE, RATE, RATE, 8000]),
    setting=st.fixed_dictionaries(
        {
            "do_normalize": st.booleans(),
            "return_attention_mask": st.booleans(),
            "padding_value": st.sampled_from([0.0, -1.5]),
            "feature_size": st.sampled_from([1, 1, 1, 2]),
        }
    ),
    options=OPTIONS,
)
def test_calls_equal_the_oracles(
    lengths: list[int], form: str, rate: int | None, setting: dict, options: dict
) -> None:
    theirs, ours = (
        cls(**setting) for cls in (transformers.Wav2Vec2FeatureExtractor, Wav2Vec2FeatureExtractor)
    )
    audio: Any = waves(lengths, dtype="float64" if "float64" in form else "float32")
    if setting["feature_size"] == 2:
        form = "float32"
        audio = [np.stack([wave, wave**2], axis=1) for wave in audio]
    if form == "lists":
        audio = [wave.tolist() for wave in audio]
    elif form.startswith("one"):
        audio = audio[0].tolist() if form == "one list" else audio[0]
    elif "array" in form:
        audio = np.stack([audio[0]] * len(lengths))
    options = options | ({} if rate is None else {"sampling_rate": rate})
    before = copy.deepcopy(audio)
    try:
        expected = theirs(audio, **options)
    except ValueError as error:
        # Rows beyond an unenforced max_length stay ragged: no mask array can be made of them there.
        if "setting an array element" in str(error):
            return
        with pytest.raises(ValueError):
            ours(audio, **options)
        return
    assert_same(ours(audio, **options), expected)
    for row, wave in zip(audio, before, strict=True):  # what was passed is left as it was
        np.testing.assert_array_equal(row, wave)


@settings(max_examples=1400, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    mask=st.booleans(),
    as_list=st.booleans(),
    convert=st.sampled_from([np.asarray, torch.from_numpy, np.ndarray.tolist]),
    options=OPTIONS,
)
def test_padding_equals_the_oracles(
    lengths: list[int], mask: bool, as_list: bool, convert: Any, options: dict
) -> None:
    theirs, ours = transformers.Wav2Vec2FeatureExtractor(), Wav2Vec2FeatureExtractor()
    rows = waves(lengths)
    columns: dict[str, list] = {"input_values": [convert(row) for row in rows]}
    if mask:
        columns["attention_mask"] = [convert(np.ones(len(row), np.int32)) for row in rows]
        options = options | {"return_attention_mask": True}  # there it would be left unpadded otherwise
    features: Any = columns
    if as_list:
        features = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    try:
        expected = theirs.pad(features if as_list else dict(columns), **options)
    except ValueError:
        with pytest.raises(ValueError):
            ours.pad(features, **options)
        return
    found = ours.pad(features, **options)
    if mask and convert is np.ndarray.tolist:
        for batch in (found, expected):  # of lists, whose integers have no width of their own
            batch["attention_mask"] = [np.asarray(row, dtype=np.int32) for row in batch["attention_mask"]]
    assert_same(found, expected)


def test_real_speech_equals_the_oracles(shared_data: Path) -> None:
    import soundfile

    paths = sorted((shared_data / "libri").rglob("*.flac"))[:3]
    assert paths
    audio = [soundfile.read(path, dtype="float32")[0][: 10 * RATE] for path in paths]
    options = {"sampling_rate": RATE, "padding": True, "return_attention_mask": True, "return_tensors": "pt"}
    assert_same(
        Wav2Vec2FeatureExtractor()(audio, **options),
        transformers.Wav2Vec2FeatureExtractor()(audio, **options),
    )


def test_scaling_ignores_what_a_masked_row_is_padded_with() -> None:
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    short, long = waves([300, 900])
    alone = extractor(short, sampling_rate=RATE).input_values[0]
    beside = extractor([short, long], sampling_rate=RATE, padding=True)
    np.testing.assert_array_equal(beside.input_values[0][:300], alone)
    assert not beside.input_values[0][300:].any()
    assert beside.attention_mask[0].sum() == 300
    assert abs(alone.mean()) < 1e-6
    assert alone.std() == pytest.approx(1, abs=1e-3)


def test_tensors_and_whole_numbers_are_taken_as_samples() -> None:
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False)
    (wave,) = waves([20])
    for audio in (torch.from_numpy(wave), [torch.from_numpy(wave)], torch.from_numpy(wave)[None]):
        np.testing.assert_array_equal(extractor(audio, sampling_rate=RATE).input_values[0], wave)
    assert extractor([1, 2, 3], sampling_rate=RATE).input_values[0].tolist() == [1.0, 2.0, 3.0]
    assert extractor(np.ones(3, np.int16), sampling_rate=RATE).input_values[0].dtype == np.float32


def test_silence_stays_finite_and_no_samples_are_refused() -> None:
    assert not zero_mean_unit_variance(np.full(100, 0.5, np.float32)).any()
    with pytest.raises(EmptyAudioError, match="the audio has no samples"):
        Wav2Vec2FeatureExtractor()([np.ones(3), np.ones(0)], sampling_rate=RATE)


def test_what_cannot_be_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    extractor = Wav2Vec2FeatureExtractor()
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (np.ones(8), {"sampling_rate": 8000}, "the audio has 8000 Hz, expected 16000"),
        (np.ones((1, 2, 8)), {}, r"expected \(samples,\); mix its channels"),
        ([np.ones((2, 8))], {}, r"a waveform has shape \(2, 8\)"),
        (np.ones(8), {"padding": "widest"}, "padding is 'widest'"),
        (np.ones(8), {"padding": "max_length"}, "max_length is not given"),
        (np.ones(8), {"truncation": True}, "truncation is on and max_length is not given"),
        (np.ones(8), {"return_tensors": "tf"}, "return_tensors is 'tf'"),
        (waves([3, 4]), {"return_tensors": "pt"}, "input_values has rows of different lengths"),
    ]
    for audio, options, reason in wrong:
        with pytest.raises(ValueError, match=reason):
            extractor(audio, **({"sampling_rate": RATE} | options))
    for features, reason in (
        ({"labels": [[1]]}, "the features have labels, expected input_values"),
        ({"input_values": [[1.0]], "attention_mask": []}, "columns of different lengths"),
        ([{"input_values": [1.0]}, {}], "row 1 of the features has no input_values, expected input_values"),
    ):
        with pytest.raises(ValueError, match=reason):
            extractor.pad(features)
    with pytest.raises(ValueError, match="sampling_rate 0"):
        Wav2Vec2FeatureExtractor(sampling_rate=0)
    extractor(np.ones(8))
    assert "sampling_rate is not given and taken for 16000 Hz" in caplog.text


def test_features_are_a_dict_whose_tensors_move() -> None:
    features = Wav2Vec2FeatureExtractor(return_attention_mask=True)(
        waves([9]), sampling_rate=RATE, return_tensors="pt"
    )
    moved = features.to("cpu", torch.float16)
    assert moved is features
    assert {**moved} == moved
    assert moved.input_values.dtype == torch.float16
    assert moved.attention_mask.dtype == torch.int32
    assert features.to(torch.float64)["input_values"].dtype == torch.float64
    assert BatchFeature(a=[1]).to("cpu") == {"a": [1]}
    with pytest.raises(AttributeError, match="labels"):
        _ = features.labels


@pytest.mark.parametrize("form", ["ours", "theirs", "processor"])
def test_files_go_both_ways(tmp_path: Path, form: str) -> None:
    settings_of = {"padding_value": -1.0, "return_attention_mask": True, "do_normalize": False}
    settings_of["sampling_rate"] = 8000
    ours, theirs = (
        Wav2Vec2FeatureExtractor(**settings_of),
        transformers.Wav2Vec2FeatureExtractor(**settings_of),
    )
    if form == "processor":
        (tmp_path / "preprocessor_config.json").write_text('{"sampling_rate": 1}')  # the nested one wins
        (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": theirs.to_dict()}))
    else:
        (ours if form == "ours" else theirs).save_pretrained(tmp_path)
    assert vars(Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)) == vars(ours)
    loaded = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == theirs.to_dict() == ours.to_dict()
    assert Wav2Vec2FeatureExtractor.from_pretrained(tmp_path, do_normalize=True).do_normalize


@pytest.mark.parametrize(
    ("filename", "content", "reason"),
    [
        ("config.json", "{}", "has no preprocessor_config.json"),
        ("preprocessor_config.json", "{", "preprocessor_config.json is not readable as JSON"),
        (
            "preprocessor_config.json",
            '{"sampling_rate": "16k"}',
            "preprocessor_config.json says sampling_rate '16k', expected int",
        ),
        ("preprocessor_config.json", '{"sampling_rate": true}', "says sampling_rate True"),
        ("preprocessor_config.json", '{"sampling_rate": 0}', "sampling_rate 0, expected both from 1"),
        ("preprocessor_config.json", '{"padding_side": "left"}', "says padding_side 'left'"),
        (
            "preprocessor_config.json",
            '{"feature_extractor_type": "SeamlessM4TFeatureExtractor"}',
            "'SeamlessM4TFeatureExtractor', expected 'Wav2Vec2FeatureExtractor'",
        ),
        (
            "processor_config.json",
            '{"feature_extractor": 1}',
            "processor_config.json says feature_extractor 1",
        ),
    ],
)
def test_malformed_files_name_the_file_and_the_reason(
    tmp_path: Path, filename: str, content: str, reason: str
) -> None:
    (tmp_path / filename).write_text(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_saving_into_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(OutputError, match="is a file; name a folder"):
        Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "a")
