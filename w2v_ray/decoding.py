"""What a job's decoder needs before any worker starts: its files, checked, and what tells them apart.

It also writes down beside kept log-probabilities what their columns stand for, and reads that back.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from w2v_ray import stores
from w2v_ray.decoder_config import DecoderConfig, kind_of
from w2v_ray.errors import ConfigError, OutputError
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

__all__ = ["check_decoder", "reachable", "read_vocabulary", "write_vocabulary"]

_RECORD = "_vocabulary.json"  # in log_probs/; readers of Parquet folders pass over such names


def check_decoder(
    decoder: DecoderConfig,
    tokenizer: Wav2Vec2CTCTokenizer,
    *,
    model: str = "",
    revision: str | None = None,
) -> dict[str, Any]:
    """Sees that a decoder can be made, and says what decides its results.

    Args:
        decoder: Its settings.
        tokenizer: Whose tokens it is to spell with.
        model: The checkpoint that ``lm: checkpoint`` means.
        revision: Branch, tag or commit of a hub id.

    Returns:
        The settings that are not as they were left, with the content of files in the place of their names.

    Raises:
        ConfigError: The decoder is no DecoderConfig.
        W2vRayError: A file does not exist, or spells words that the tokens cannot.
    """
    if not isinstance(decoder, DecoderConfig):
        raise ConfigError(
            f"decoder is {decoder!r} ({kind_of(decoder)}), expected a DecoderConfig; write "
            'decoder=w2v_ray.DecoderConfig(lm="lm.arpa")'
        )
    fields = decoder.search_fields()
    if not decoder.is_search:
        return fields
    from w2v_ray.text.lm_source import (
        check_letters,
        content_of,
        find_language_model,
        read_words,
        sampled_words,
    )

    lower = str.lower if tokenizer.do_lower_case else str
    special = set(tokenizer.all_special_tokens)
    letters = [lower(token) for token in tokenizer.encoder if token not in special]
    if decoder.hotwords:
        words = [word for phrase in decoder.hotwords for word in phrase.split()]
        for word in words:
            check_letters("hotwords", [word], letters)
    if decoder.lm is not None:
        source = find_language_model(decoder.lm, model=model, revision=revision)
        check_letters(f"language model {source.path!r}", sampled_words(source.path), letters)
        fields["lm"] = content_of(source.path)
        if source.settings:
            fields["lm_settings"] = dict(source.settings)
        if decoder.unigrams is None and source.unigrams is not None:
            fields["unigrams"] = content_of(source.unigrams)
    if decoder.unigrams is not None:
        check_letters(f"unigrams {decoder.unigrams!r}", read_words(decoder.unigrams), letters)
        fields["unigrams"] = content_of(decoder.unigrams)
    return fields


def reachable(decoder: DecoderConfig) -> DecoderConfig:
    """The same settings, with files named so that workers find them, who have other working folders."""
    absolute: dict[str, Any] = {
        name: stores.canonical(path)
        for name in ("lm", "unigrams")
        if (path := getattr(decoder, name)) is not None and path != "checkpoint"
    }
    return replace(decoder, **absolute)


def write_vocabulary(output: str, tokenizer: Wav2Vec2CTCTokenizer, *, seconds_per_frame: float) -> None:
    """Writes into an output what the columns of its kept log-probabilities stand for.

    Raises:
        OutputError: The store refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}
    record = {"seconds_per_frame": seconds_per_frame, "files": files}
    path = stores.join(output, "log_probs", _RECORD)
    stores.publish(path, json.dumps(record, indent=2).encode(), root=output)


def read_vocabulary(output: str) -> tuple[Wav2Vec2CTCTokenizer, float]:
    """The tokenizer and the seconds per frame that `write_vocabulary` wrote.

    Raises:
        OutputError: The output has none, or it cannot be read.
    """
    path = stores.join(output, "log_probs", _RECORD)
    try:
        if not stores.exists(path):
            raise OutputError(
                f"{output!r} holds no log-probabilities; name the output of a job with --keep-log-probs"
            )
        record = json.loads(stores.read_bytes(path))
        with tempfile.TemporaryDirectory() as folder:
            for name, text in record["files"].items():
                (Path(folder) / Path(name).name).write_text(text, encoding="utf-8")
            return Wav2Vec2CTCTokenizer.from_pretrained(folder), float(record["seconds_per_frame"])
    except OutputError:
        raise
    except Exception as error:  # each store has its own errors, and JSON and the tokenizer theirs
        raise OutputError(
            f"{path!r} cannot be read ({stores.explain(error)}); run the job that made it again"
        ) from error
