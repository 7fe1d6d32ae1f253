"""Recordings as text: by the best character of each frame, or by a beam search with a language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2v_ray.audio.fbank import FRAME_SHIFT
from w2v_ray.audio.recordings import read_recording
from w2v_ray.audio.windows import Window, cut_windows, window_samples
from w2v_ray.inference.pieces import Piece, answer, forward, refuse_short

__all__ = ["AutomaticSpeechRecognitionPipeline"]


class AutomaticSpeechRecognitionPipeline:
    """Reads recordings as text, by the best character of each frame or by a beam search.

    The options may be given here, for all calls, or in a call.

    Args:
        model: A model with a CTC head.
        feature_extractor: The one that the model was trained with.
        tokenizer: Names the model's outputs.
        decoder: A beam search, as of Wav2Vec2ProcessorWithLM; null: the best character of each frame.
        chunk_length_s: Seconds that the model hears at once; null or 0: the whole recording.
        stride_length_s: Seconds at both ends of a chunk that are heard and not kept, or a pair for the left
            and the right; null: a sixth of the chunk at each end.
        return_timestamps: ``char`` or ``word`` for the seconds of each; null for the text alone. A beam
            search knows those of words alone.
        decoder_kwargs: Options of the beam search, as of its ``decode_beams``.
        batch_size: Chunks, or whole recordings, that the model computes at once.

    Attributes:
        type: ``ctc``, or ``ctc_with_lm`` with a beam search.
    """

    def __init__(
        self,
        model: Any,
        feature_extractor: Any,
        tokenizer: Any,
        decoder: Any = None,
        *,
        chunk_length_s: float | None = None,
        stride_length_s: float | Sequence[float] | None = None,
        return_timestamps: str | None = None,
        decoder_kwargs: Mapping[str, Any] | None = None,
        batch_size: int = 1,
    ) -> None:
        self.model, self.feature_extractor, self.tokenizer = model, feature_extractor, tokenizer
        self.decoder, self.decoder_kwargs = decoder, decoder_kwargs
        self.type = "ctc" if decoder is None else "ctc_with_lm"
        self.chunk_length_s, self.stride_length_s = chunk_length_s, stride_length_s
        self.return_timestamps = return_timestamps
        self.batch_size = batch_size

    def __call__(
        self,
        inputs: Any,
        *,
        chunk_length_s: float | None = None,
        stride_length_s: float | Sequence[float] | None = None,
        return_timestamps: str | None = None,
        decoder_kwargs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
    ) -> Any:
        """Recognises one recording, or several.

        Args:
            inputs: A recording, a list of them, or anything that yields them. A recording is a path, an
                http(s) URL, the bytes of a file, samples at the model's rate, shape (samples,) or
                (channels, samples), or a mapping: of ``raw`` or ``array`` with ``sampling_rate``, and at
                will ``stride``, a pair of samples at its ends that are heard and not kept; or of ``bytes``
                or ``path``. What else a mapping holds comes back in its result, in a list.
            chunk_length_s: As of the constructor, and the options after it.
            stride_length_s: See ``chunk_length_s``.
            return_timestamps: See ``chunk_length_s``.
            decoder_kwargs: See ``chunk_length_s``.
            batch_size: See ``chunk_length_s``.

        Returns:
            For a recording a dict of ``text`` and, if asked for, ``chunks``: dicts of ``text`` and
            ``timestamp``, a pair of seconds. For a list a list; for what yields recordings an iterator,
            which takes them as it is read.

        Raises:
            ItemError: A recording cannot be read or decoded, or is too short for one frame.
            ValueError: An option is none of those, or samples are not as described.
            TypeError: A recording is of another type.
        """
        chunk_length_s = self.chunk_length_s if chunk_length_s is None else chunk_length_s
        stride_length_s = self.stride_length_s if stride_length_s is None else stride_length_s
        timestamps = return_timestamps or self.return_timestamps
        if timestamps not in (None, False, "char", "word"):
            raise ValueError(f"return_timestamps is {timestamps!r}, expected 'char', 'word' or null")
        if timestamps == "char" and self.type == "ctc_with_lm":
            raise ValueError(
                "return_timestamps is 'char', expected 'word' or null: a beam search knows the times of words"
            )
        decoder_kwargs = self.decoder_kwargs if decoder_kwargs is None else decoder_kwargs
        if decoder_kwargs and self.decoder is None:
            raise ValueError(
                f"decoder_kwargs is {dict(decoder_kwargs)}, but there is no decoder; pass one to the pipeline"
            )
        window = None
        if chunk_length_s:
            rate = self.feature_extractor.sampling_rate
            window = window_samples(chunk_length_s, stride_length_s, rate=rate, hop=self._hop)
        cut = partial(self._cut, window=window)
        join = partial(self._join, timestamps, decoder_kwargs or {})
        batch_size = self.batch_size if batch_size is None else batch_size
        return answer(inputs, cut, self._frames, join, batch_size)

    @property
    def _hop(self) -> int:
        """Samples from one output of the model to the next."""
        config, extractor = self.model.config, self.feature_extractor
        hop: int = extractor.stride * FRAME_SHIFT if hasattr(extractor, "stride") else config.hop_samples
        return hop * config.adapter_stride**config.num_adapter_layers if config.add_adapter else hop

    def _cut(self, item: Any, *, window: tuple[int, int, int] | None) -> Iterator[Piece]:
        recording = read_recording(item, self.feature_extractor.sampling_rate)
        samples, extra = recording.samples, recording.extra
        if window is None:
            yield Piece(samples, recording.stride, extra)
            return
        for one in cut_windows(len(samples), *window):
            yield Piece(
                samples[one.start : one.end], (one.left, one.right), extra, is_last=one.end >= len(samples)
            )

    def _frames(self, pieces: Sequence[Piece]) -> Iterator[NDArray[Any] | None]:
        """The best token of each frame that a piece keeps, or its logits for a beam search."""
        for piece, logits in zip(pieces, forward(self.model, self.feature_extractor, pieces), strict=True):
            if logits is None:
                yield None
                continue
            frames = (logits.argmax(-1) if self.decoder is None else logits.float()).cpu().numpy()
            if piece.stride is not None:
                frames = frames[Window(0, len(piece.samples), *piece.stride).kept(self._hop)]
            yield frames

    def _join(
        self,
        timestamps: str | None,
        decoder_kwargs: Mapping[str, Any],
        pieces: Sequence[Piece],
        parts: Sequence[NDArray[Any] | None],
    ) -> dict[str, Any]:
        kept = [part for part in parts if part is not None and len(part)]
        if not kept:
            refuse_short(sum(len(piece.samples) for piece in pieces))
        read = self._read_path if self.decoder is None else self._search
        text, found = read(np.concatenate(kept), timestamps, **decoder_kwargs)
        result: dict[str, Any] = {"text": text}
        if timestamps:
            rate = self.feature_extractor.sampling_rate
            result["chunks"] = [
                {
                    "text": one[timestamps],
                    "timestamp": tuple(
                        one[edge] * self._hop / rate for edge in ("start_offset", "end_offset")
                    ),
                }
                for one in found
            ]
        return result | {name: [piece.extra[name] for piece in pieces] for name in pieces[0].extra}

    def _read_path(self, path: NDArray[Any], timestamps: str | None) -> tuple[str, list[dict[str, Any]]]:
        """A path of tokens as text, and the frames of its characters or words if asked for."""
        if not timestamps:
            return self.tokenizer.decode(path), []
        decoded = self.tokenizer.decode(path, **{f"output_{timestamps}_offsets": True})
        return decoded.text, decoded[f"{timestamps}_offsets"]

    def _search(
        self, logits: NDArray[Any], timestamps: str | None, **options: Any
    ) -> tuple[str, list[dict[str, Any]]]:
        """The best text of a beam search, and the frames of its words."""
        text, _, words, *_ = self.decoder.decode_beams(logits, **options)[0]
        return text, [
            {"word": word, "start_offset": start, "end_offset": end} for word, (start, end) in words
        ]
