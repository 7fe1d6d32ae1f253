"""The feature extractor of Wav2Vec2-BERT, against transformers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils import PaddingStrategy, TensorType

from w2v_ray.audio.fbank import log_mel
from w2v_ray.audio.seamless import SeamlessM4TFeatureExtractor
from w2v_ray.errors import CheckpointError, OutputError, TooShortError

RATE = 16_000


def waves(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [(generator.normal(size=n) * 0.1).astype("float32") for n in lengths]


def smallest_deviation(rows: list[np.ndarray], num_mel_bins: int) -> float:
    """Of the mel bins of the rows: what rounding is divided by."""
    bins = log_mel([torch.from_numpy(row) for row in rows], num_mel_bins=num_mel_bins, sampling_rate=RATE)
    return min(float((row.var(0) + 1e-7).sqrt().min()) for row in bins)


def assert_same(found: Any, expected: Any, atol: float) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        theirs, ours = expected[name], found[name]
        assert type(ours) is type(theirs)
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=atol)


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "padding": st.sampled_from(
            [True, True, False, "longest", "max_length", "do_not_pad", *PaddingStrategy]
        ),
        "max_length": st.one_of(st.integers(1, 30), st.integers(1, 30), st.none()),
        "truncation": st.booleans(),
        "pad_to_multiple_of": st.sampled_from([None, 1, 2, 3, 8]),
        "return_attention_mask": st.sampled_from([None, True, False]),
        "return_tensors": st.sampled_from([None, "np", "pt", TensorType.NUMPY, TensorType.PYTORCH]),
    },
)
FORMS = ["arrays", "lists", "tensors", "one", "one tensor", "array", "stereo", "float64"]


def in_form(form: str, rows: list[np.ndarray]) -> tuple[Any, list[np.ndarray]]:
    """What a caller passes, and the rows that it means."""
    if form == "array":
        return np.stack([rows[0]] * len(rows)), [rows[0]] * len(rows)
    if form in ("one", "one tensor"):
        return (torch.from_numpy(rows[0]) if form == "one tensor" else rows[0]), rows[:1]
    return {
        "arrays": rows,
        "lists": [row.tolist() for row in rows],
        "tensors": [torch.from_numpy(row) for row in rows],
        "stereo": [np.stack([row, row * 0 + 0.5]) for row in rows],
        "float64": [row.astype("float64") for row in rows],
    }[form], rows


@settings(max_examples=1500, deadline=None)
@given(
    lengths=st.lists(st.integers(560, 2400), min_size=1, max_size=3),
    form=st.sampled_from(FORMS),
    setting=st.fixed_dictionaries(
        {
            "num_mel_bins": st.sampled_from([80, 40]),
            "stride": st.sampled_from([1, 2, 2, 3]),
            "padding_value": st.sampled_from([0.0, 1, -1.5]),
            "return_attention_mask": st.booleans(),
        }
    ),
    normalize=st.sampled_from([True, True, False]),
    rate=st.sampled_from([None, RATE, RATE, RATE, RATE, RATE, RATE, 8000]),
    options=OPTIONS,
)
def test_calls_equal_the_oracles(
    lengths: list[int], form: str, setting: dict, normalize: bool, rate: int | None, options: dict
) -> None:
    theirs = transformers.SeamlessM4TFeatureExtractor(**setting)
    ours = SeamlessM4TFeatureExtractor(**setting)
    audio, rows = in_form(form, waves(lengths))
    options = options | {"do_normalize_per_mel_bins": normalize}
    if rate is not None:
        options["sampling_rate"] = rate
    before = [row.copy() for row in rows]
    try:
        expected = theirs(audio, **options)
    except ValueError:
        with pytest.raises(ValueError):
            ours(audio, **options)
        return
    found = ours(audio, **options)
    for row, wave in zip(rows, before, strict=True):  # what was passed is left as it was
        np.testing.assert_array_equal(row, wave)
    if setting["stride"] == 1:
        # transformers makes a mask of no columns there.
        masks = [features.pop("attention_mask", None) for features in (found, expected)]
        assert (masks[0] is None) == (masks[1] is None)
    # It scales in float32: what rounding moves there is divided by the deviation of a bin.
    rounding = 5e-6 / smallest_deviation(rows, setting["num_mel_bins"]) if normalize else 0
    assert_same(found, expected, atol=1e-5 + rounding)


@settings(max_examples=1400, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    mask=st.booleans(),
    as_list=st.booleans(),
    convert=st.sampled_from([np.asarray, torch.from_numpy, np.ndarray.tolist]),
    options=OPTIONS,
)
def test_padding_equals_the_oracles(
    lengths: list[int], mask: bool, as_list: bool, convert: Any, options: dict
) -> None:
    theirs, ours = transformers.SeamlessM4TFeatureExtractor(), SeamlessM4TFeatureExtractor()
    generator = np.random.default_rng(0)
    rows = [generator.normal(size=(n, 6)).astype("float32") for n in lengths]
    columns: dict[str, list] = {"input_features": [convert(row) for row in rows]}
    if mask:
        columns["attention_mask"] = [convert(np.ones(n, np.int32)) for n in lengths]
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
    assert found.keys() == expected.keys()
    for name in expected:
        assert type(found[name]) is type(expected[name])
        for row, wanted in zip(found[name], expected[name], strict=True):
            np.testing.assert_array_equal(np.asarray(row), np.asarray(wanted))


def test_real_speech_equals_the_oracles(shared_data: Path) -> None:
    import soundfile

    paths = sorted((shared_data / "libri").rglob("*.flac"))[:3]
    assert paths
    audio = [soundfile.read(path, dtype="float32")[0][: 5 * RATE] for path in paths]
    options: dict[str, Any] = {"sampling_rate": RATE, "return_tensors": "pt"}
    assert_same(
        SeamlessM4TFeatureExtractor()(audio, **options),
        transformers.SeamlessM4TFeatureExtractor()(audio, **options),
        atol=1e-4,
    )


def test_no_row_depends_on_its_neighbours() -> None:
    extractor = SeamlessM4TFeatureExtractor()
    rows = waves([700, 16_000, 5000])
    together = extractor(rows, sampling_rate=RATE, return_tensors="pt")
    for index, row in enumerate(rows):
        alone = extractor(row, sampling_rate=RATE, return_tensors="pt")
        steps = int(alone.attention_mask.sum())
        assert int(together.attention_mask[index].sum()) == steps
        torch.testing.assert_close(
            together.input_features[index, :steps], alone.input_features[0, :steps], rtol=0, atol=1e-6
        )


def test_a_tensor_of_several_rows_is_a_batch() -> None:
    # transformers takes it for one row of several channels, against its own documentation.
    extractor = SeamlessM4TFeatureExtractor()
    batch = torch.from_numpy(np.stack(waves([2000, 2000])))
    np.testing.assert_array_equal(
        extractor(batch, sampling_rate=RATE).input_features,
        extractor(batch.numpy(), sampling_rate=RATE).input_features,
    )


def test_silence_stays_finite() -> None:
    features = SeamlessM4TFeatureExtractor()(np.zeros(4000, np.float32), sampling_rate=RATE)
    assert np.abs(features.input_features).max() < 1e-6


def test_one_step_without_scaling_is_the_oracles() -> None:
    options: dict[str, Any] = {"sampling_rate": RATE, "do_normalize_per_mel_bins": False}
    audio = waves([400])[0]
    expected = transformers.SeamlessM4TFeatureExtractor()(audio, **options)
    assert_same(SeamlessM4TFeatureExtractor()(audio, **options), expected, atol=1e-5)
    assert expected["attention_mask"].tolist() == [[0]]  # half of the step is padding


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_steps_that_count_follow_from_the_length(stride: int) -> None:
    extract = SeamlessM4TFeatureExtractor(stride=stride)
    for audio in waves([560, 719, 720, 880, 1_040, 1_200, 1_360, 1_520, 4_001]):
        mask = extract(audio, sampling_rate=RATE)["attention_mask"]
        assert extract.num_steps(len(audio)) == mask.sum()
    assert extract.num_steps(399) == 0


def test_read_only_and_whole_numbers_are_taken() -> None:
    extractor = SeamlessM4TFeatureExtractor()
    (wave,) = waves([2000])
    expected = extractor(wave, sampling_rate=RATE).input_features
    wave.flags.writeable = False
    np.testing.assert_array_equal(extractor([wave], sampling_rate=RATE).input_features, expected)
    loud = (wave * 1000).astype(np.int16)
    whole = extractor(loud, sampling_rate=RATE).input_features
    np.testing.assert_array_equal(whole, extractor(loud.astype("float32"), sampling_rate=RATE).input_features)
    on_cpu = extractor(wave, sampling_rate=RATE, device="cpu", return_tensors="pt").input_features
    np.testing.assert_array_equal(on_cpu.numpy(), expected)


def test_what_cannot_be_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    extractor = SeamlessM4TFeatureExtractor()
    one = np.ones(2000, np.float32)
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (one, {"sampling_rate": 8000}, "the audio has 8000 Hz, expected 16000"),
        (np.ones((1, 1, 2, 800)), {}, r"a waveform has shape \(1, 2, 800\), expected \(samples,\) or"),
        (1.0, {}, r"a waveform has shape \(\)"),
        (one, {"padding": "widest"}, "padding is 'widest'"),
        (one, {"padding": "max_length"}, "max_length is not given"),
        (one, {"truncation": True}, "truncation is on and max_length is not given"),
        (one, {"return_tensors": "tf"}, "return_tensors is 'tf'"),
        ([one, one[:900]], {"padding": False}, "rows have 4 to 11 frames and cannot be stacked"),
        ([one, one[:900]], {"padding": "max_length", "max_length": 6}, "rows have 6 to 11 frames"),
    ]
    for audio, options, reason in wrong:
        with pytest.raises(ValueError, match=reason):
            extractor(audio, **({"sampling_rate": RATE} | options))
    with pytest.raises(TooShortError, match="has 559 samples, expected at least 560, which make 2 frames"):
        extractor([one, one[:559]], sampling_rate=RATE)
    with pytest.raises(TooShortError, match="has 399 samples, expected at least 400, which make 1 frame;"):
        extractor(one[:399], sampling_rate=RATE, do_normalize_per_mel_bins=False)
    with pytest.raises(TooShortError, match="has 0 samples"):
        extractor([], sampling_rate=RATE)
    with pytest.raises(ValueError, match="the features have labels, expected input_features to pad"):
        extractor.pad({"labels": [[1]]})
    with pytest.raises(ValueError, match="stride is 0, expected a whole number from 1"):
        SeamlessM4TFeatureExtractor(stride=0)
    extractor(one)
    assert "sampling_rate is not given and taken for 16000 Hz" in caplog.text


@pytest.mark.parametrize("form", ["ours", "theirs", "processor"])
def test_files_go_both_ways(tmp_path: Path, form: str) -> None:
    settings_of = {"padding_value": 1, "return_attention_mask": False, "num_mel_bins": 40, "stride": 3}
    ours = SeamlessM4TFeatureExtractor(**settings_of)
    theirs = transformers.SeamlessM4TFeatureExtractor(**settings_of)
    if form == "processor":
        (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": theirs.to_dict()}))
    else:
        (ours if form == "ours" else theirs).save_pretrained(tmp_path)
    assert vars(SeamlessM4TFeatureExtractor.from_pretrained(tmp_path)) == vars(ours)
    loaded = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is transformers.SeamlessM4TFeatureExtractor
    assert loaded.to_dict() == theirs.to_dict() == ours.to_dict()
    assert SeamlessM4TFeatureExtractor.from_pretrained(tmp_path, stride=2).stride == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[", "is not readable as JSON"),
        ('{"stride": 2.5}', "says stride 2.5, expected int; correct the file"),
        ('{"num_mel_bins": 0}', "num_mel_bins is 0, expected a whole number from 1; correct the file"),
        ('{"padding_side": "left"}', "says padding_side 'left', expected 'right'"),
        (
            '{"feature_extractor_type": "Wav2Vec2FeatureExtractor"}',
            "'Wav2Vec2FeatureExtractor', expected 'SeamlessM4TFeatureExtractor'",
        ),
    ],
)
def test_malformed_files_name_the_file_and_the_reason(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        SeamlessM4TFeatureExtractor.from_pretrained(tmp_path)
    assert str(tmp_path / "preprocessor_config.json") in str(caught.value)


def test_saving_into_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(OutputError, match="is a file; name a folder"):
        SeamlessM4TFeatureExtractor().save_pretrained(tmp_path / "a")
    with pytest.raises(TypeError, match="saving has no option 'repo'; those for the hub are repo_id"):
        SeamlessM4TFeatureExtractor().save_pretrained(tmp_path / "b", repo="x")


def test_it_travels_to_workers() -> None:
    extractor = SeamlessM4TFeatureExtractor(stride=3)
    extractor(waves([800]), sampling_rate=RATE)
    assert vars(pickle.loads(pickle.dumps(extractor))) == vars(extractor)
