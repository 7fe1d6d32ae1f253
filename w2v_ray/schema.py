"""Every column that crosses a stage or reaches disk: its name, Arrow type, unit and meaning.

Each stage takes and returns ``pyarrow.Table``s; a table between two stages has at least the columns
of the schema named here, and extra columns pass through untouched. Times are seconds in the
recording, unless the name says otherwise.
"""

from __future__ import annotations

import pyarrow as pa

__all__ = [
    "ALIGNED_CHARACTER",
    "ALIGNED_WORD",
    "ALIGNMENT",
    "CHARACTER",
    "CLASS_SCORES",
    "DAMAGE_KEY",
    "DECODED",
    "DECODED_TEXT",
    "EMBEDDING",
    "EMISSION_DTYPE",
    "ENCODED",
    "ERROR",
    "FRAME",
    "FRAME_SCORES",
    "ITEM",
    "KEPT",
    "LABEL",
    "LANGUAGE",
    "LANGUAGE_ERROR_KEY",
    "LANGUAGE_KEY",
    "LOG_PROBS",
    "READ",
    "REJECT",
    "SAMPLE_RATE_HZ",
    "SCHEMA_VERSION",
    "SEGMENT",
    "TABLES",
    "TABLE_OF_TASK",
    "TOP_TOKENS",
    "TRANSCRIPT",
    "TURN",
    "WORD",
    "error_value",
    "sized",
]

SCHEMA_VERSION = 4
SAMPLE_RATE_HZ = 16_000  # every stage after decode_audio works at this rate
EMISSION_DTYPE = "float16"  # of log_probs between encode and decode_text
DAMAGE_KEY = "w2v_ray.damage"  # in the metadata of an item that planning found unreadable: the reason
# In the metadata of an item whose language planning took from another output: it, or why there is none.
LANGUAGE_KEY = "w2v_ray.language"
LANGUAGE_ERROR_KEY = "w2v_ray.language_error"

ERROR = pa.struct(
    [
        pa.field("stage", pa.string(), metadata={"meaning": "the stage that failed"}),
        pa.field("error_class", pa.string(), metadata={"meaning": "a class of w2v_ray.errors"}),
        pa.field("message", pa.string(), metadata={"meaning": "one sentence"}),
    ]
)


def _span(name: str, meaning: str) -> pa.StructType:
    """A piece of a text, where it is, and how sure it is."""
    columns = [
        (name, pa.string(), meaning, ""),
        ("start_s", pa.float64(), "its start in the recording", "s"),
        ("end_s", pa.float64(), "its end in the recording, at most that of the segment", "s"),
        ("confidence", pa.float32(), "in [0, 1]", ""),
        ("start_frame", pa.int32(), "its first frame, counted from the start of the segment", "frames"),
        ("end_frame", pa.int32(), "the frame after its last", "frames"),
    ]
    return pa.struct([_column(*column) for column in columns])


def _column(name: str, type_: pa.DataType, meaning: str, unit: str = "") -> pa.Field:
    metadata = {"meaning": meaning} | ({"unit": unit} if unit else {})
    return pa.field(name, type_, metadata=metadata)


WORD = _span("word", "the word")
CHARACTER = _span("char", "the character, or what else a token of the vocabulary spells")

_SHARD = _column("shard_id", pa.string(), "the shard that carries the item")
_ITEM_INDEX = _column("item_index", pa.int32(), "position of the item in its shard")
_RECORDING = _column("recording_id", pa.string(), "unique and stable name of the recording")
_URI = _column("uri", pa.string(), "where the bytes are: a path or an fsspec URL")
_METADATA = _column("metadata", pa.string(), "JSON object: what the input's manifest said besides")
_ERROR = _column("error", ERROR, "null unless the item failed; later stages pass such rows on")

LANGUAGE = _column(
    "language", pa.string(), "language whose adapter and vocabulary were used; null: the checkpoint's own"
)

# What the planner writes and read_audio takes: one row is a recording or a time range of one.
ITEM = pa.schema(
    [
        _SHARD,
        _ITEM_INDEX,
        _RECORDING,
        _URI,
        _column("byte_offset", pa.int64(), "first byte in the file; null: the whole file", "bytes"),
        _column("byte_size", pa.int64(), "size of the file or of the member in it", "bytes"),
        _column(
            "container",
            pa.string(),
            "gzip: offset and size are of what it unpacks to; parquet:COLUMN, arrow:COLUMN: a value; or null",
        ),
        _column("row", pa.int64(), "row in the Parquet or Arrow file"),
        _column("version", pa.string(), "etag or modification time when planned"),
        _column("start_s", pa.float64(), "nominal start of the range; null: the beginning", "s"),
        _column("end_s", pa.float64(), "nominal end of the range; null: the end", "s"),
        _column("start_is_cut", pa.bool_(), "true: the start moves to the agreed silent cut"),
        _column("end_is_cut", pa.bool_(), "true: the end moves to the agreed silent cut"),
        _column("channel", pa.int32(), "the one channel to take, from 0; null: as the job says"),
        _column("planned_s", pa.float64(), "length as planned, from the header or the size", "s"),
        _column("fingerprint", pa.string(), "hash of id, uri, byte range, row, time range, channel, version"),
        _METADATA,
        _column("generation", pa.int32(), "1, and more each time the item is planned again"),
    ]
)

# read_audio adds:
READ = [
    _column("audio_bytes", pa.large_binary(), "the encoded audio; null: too large, open in place"),
    _ERROR,
]

# decode_audio drops audio_bytes, replaces start_s and end_s by the true ones, and adds:
DECODED = [
    _column("samples", pa.large_binary(), "mono float32 samples at 16 kHz"),
    _column("duration_s", pa.float64(), "length of the samples", "s"),
    _column("sample_rate_hz", pa.int32(), "rate of the source", "Hz"),
    _column("num_channels", pa.int32(), "channels of the source"),
    _column("codec", pa.string(), "container/codec of the source, as the decoder names it"),
    _column("channel", pa.int32(), "channel of the source that the samples are, from 0; null: the mix"),
    _column("decode_status", pa.string(), "ok, or truncated: shorter than its header or plan says"),
    _column("audio_notes", pa.list_(pa.string()), "any of non_finite, clipped, silent"),
]

# segment_audio makes one row per segment, whose start_s, end_s, duration_s and samples these become. It adds:
SEGMENT = [
    _column("segment_id", pa.string(), "recording_id@start_ms-end_ms, with #cN before the @ for a channel"),
    _column("segment_index", pa.int32(), "position of the segment in its item and channel"),
    _column("speech_ratio", pa.float32(), "share of its frames that are not silent, or that are speech"),
]

# encode drops samples and adds what its heads give. A head that transcribes:
ENCODED = [
    _column("log_probs", pa.large_binary(), "float16 log-probabilities, num_frames x vocabulary"),
    _column("num_frames", pa.int32(), "frames of the emission"),
]

# Where only the likeliest tokens of each frame are handed on, log_probs is of these, and beside it are:
TOP_TOKENS = [
    _column("top_tokens", pa.large_binary(), "their columns, two bytes each; null: log_probs has all"),
    _column("vocabulary_size", pa.int32(), "columns of the whole emission; null: log_probs has all"),
]

# A head that embeds; how many numbers, and whether of 32 or 16 bits, is for the model and the job.
_EMBEDDING = _column("embedding", pa.list_(pa.float32(), 1), "of length 1; null: too short, or no speech")

# A head that classifies segments; choose_labels makes labels of it.
CLASS_SCORES = _column("class_scores", pa.list_(pa.float32()), "in [0, 1], one for each class")

# A head that classifies frames, beside num_frames; find_turns makes turns of it.
FRAME_SCORES = _column("frame_scores", pa.large_binary(), "float16, in [0, 1], num_frames x classes")

# keep_log_probs adds, where a job keeps them:
KEPT = [
    _column("kept_tokens", pa.large_binary(), "tokens other than the blank, likeliest first, by frame"),
    _column("kept_log_probs", pa.large_binary(), "float16 log-probabilities of the blank and these"),
    _column("num_columns", pa.int32(), "columns of the emission, tokens of the model"),
]

# What write_parquet publishes in transcripts/ (decode_text drops log_probs and adds the text columns).
TRANSCRIPT = pa.schema(
    [
        _SHARD,
        _ITEM_INDEX,
        _RECORDING,
        SEGMENT[0],
        SEGMENT[1],
        _URI,
        _column("start_s", pa.float64(), "start of the segment in the recording", "s"),
        _column("end_s", pa.float64(), "end of the segment in the recording", "s"),
        DECODED[1],
        _column("text", pa.string(), "what was recognised; empty where nothing was"),
        _column("confidence", pa.float32(), "in [0, 1]; null where nothing was recognised"),
        _column("words", pa.list_(WORD), "the words of the text; times in the recording", "s"),
        _column("characters", pa.list_(CHARACTER), "those of the words; null unless asked for", "s"),
        _column("logit_score", pa.float64(), "log-probability of the text by the emission; null: greedy"),
        _column("lm_score", pa.float64(), "the same plus language model and hotwords; null: greedy"),
        LANGUAGE,
        ENCODED[1],
        *DECODED[2:],
        SEGMENT[2],
        _METADATA,
    ],
    metadata={"w2v_ray.schema_version": str(SCHEMA_VERSION)},
)

# What decode_text adds.
DECODED_TEXT = ("text", "confidence", "words", "characters", "logit_score", "lm_score")

# What the other tables of segments have in the place of what was recognised.
_BEFORE = [TRANSCRIPT.field(name) for name in TRANSCRIPT.names[: TRANSCRIPT.names.index("text")]]
_AFTER = [*DECODED[2:], SEGMENT[2], _METADATA]


def _of_segments(*columns: pa.Field) -> pa.Schema:
    return pa.schema([*_BEFORE, *columns, *_AFTER], metadata={"w2v_ray.schema_version": str(SCHEMA_VERSION)})


# What write_parquet publishes in embeddings/.
EMBEDDING = _of_segments(_EMBEDDING)

_LABEL = _column("label", pa.string(), "a class of the model")
_SCORE = _column("score", pa.float32(), "in [0, 1]")

# What write_parquet publishes in labels/ (choose_labels drops class_scores and adds these).
LABEL = _of_segments(
    _column("label", pa.string(), "the likeliest class; null: none reaches the threshold, or no speech"),
    _column("score", pa.float32(), "of the likeliest class, in [0, 1]"),
    _column("labels", pa.list_(pa.struct([_LABEL, _SCORE])), "the likeliest classes, best first"),
)

TURN = pa.struct(
    [
        _LABEL,
        _column("start_s", pa.float64(), "its start in the recording", "s"),
        _column("end_s", pa.float64(), "its end in the recording, at most that of the segment", "s"),
        _column("score", pa.float32(), "mean over its frames, in [0, 1]"),
    ]
)

# What write_parquet publishes in frames/ (find_turns drops frame_scores and adds these).
FRAME = _of_segments(
    ENCODED[1],
    _column("seconds_per_frame", pa.float64(), "from one frame to the next", "s"),
    _column("classes", pa.list_(pa.string()), "of the model, in the order of the scores"),
    _column("activity", pa.list_(pa.list_(pa.float16(), 1)), "of each frame, the score of each class"),
    _column("turns", pa.list_(TURN), "where a class is active"),
)

# What write_parquet publishes in log_probs/ where a job keeps them: what decode_text takes, and what failed.
LOG_PROBS = pa.schema(
    [
        *(field for field in TRANSCRIPT if field.name not in DECODED_TEXT),
        ITEM.field("byte_size"),
        ITEM.field("planned_s"),
        ITEM.field("generation"),
        _ERROR,
        *KEPT,
    ],
    metadata={"w2v_ray.schema_version": str(SCHEMA_VERSION)},
)


def _aligned(name: str) -> pa.DataType:
    """A word or a character of a text that was given, under ``name``."""
    return pa.struct(
        [
            _column(name, pa.string(), "as it was given"),
            _column("start_s", pa.float64(), "its start in the recording", "s"),
            _column("end_s", pa.float64(), "its end in the recording", "s"),
            _column("score", pa.float32(), "in [0, 1]; null: not in the vocabulary"),
            _column("aligned", pa.bool_(), "false: its start or end was set between its neighbours"),
        ]
    )


ALIGNED_WORD = _aligned("word")
ALIGNED_CHARACTER = _aligned("char")

# What write_parquet publishes in alignments/ (align_text joins the segments of an item to one row).
ALIGNMENT = pa.schema(
    [
        _SHARD,
        _ITEM_INDEX,
        _RECORDING,
        _URI,
        _column("start_s", pa.float64(), "start of the item in the recording", "s"),
        _column("end_s", pa.float64(), "end of the item in the recording", "s"),
        DECODED[1],
        _column("text", pa.string(), "the text that was given"),
        _column("score", pa.float32(), "in [0, 1], over all words; null where nothing was aligned"),
        _column("ctc_loss", pa.float64(), "-log of the probability of the text, over all paths", "nats"),
        _column("loss_per_label", pa.float64(), "high where the text is wrong; null: no labels", "nats"),
        _column("words", pa.list_(ALIGNED_WORD), "every word of the text in order"),
        _column("characters", pa.list_(ALIGNED_CHARACTER), "the characters of the words in order"),
        LANGUAGE,
        ENCODED[1],
        *DECODED[2:],
        _METADATA,
    ],
    metadata={"w2v_ray.schema_version": str(SCHEMA_VERSION)},
)

# The table that each task fills. The parts of the job's own task say that a shard is done; the tables of
# others that share its encoder lie beside it.
TABLE_OF_TASK = {
    "transcribe": "transcripts",
    "embed": "embeddings",
    "classify": "labels",
    "frames": "frames",
    "align": "alignments",
}
TABLES = {
    "transcripts": TRANSCRIPT,
    "embeddings": EMBEDDING,
    "labels": LABEL,
    "frames": FRAME,
    "alignments": ALIGNMENT,
}

# What write_parquet publishes in rejects/.
REJECT = pa.schema(
    [
        _SHARD,
        _ITEM_INDEX,
        _RECORDING,
        _column("segment_id", pa.string(), "null where the item failed before it was segmented"),
        DECODED[5],
        _URI,
        _column("start_s", pa.float64(), "start of what failed; null: the beginning", "s"),
        _column("end_s", pa.float64(), "end of what failed; null: the end", "s"),
        _column("planned_s", pa.float64(), "length of what failed, as far as known", "s"),
        _column("byte_size", pa.int64(), "size of the file or member", "bytes"),
        _column("stage", pa.string(), "the stage that failed"),
        _column("error_class", pa.string(), "a class of w2v_ray.errors"),
        _column("message", pa.string(), "one sentence"),
        _column("attempt", pa.int32(), "which try of the item this was: its generation"),
        _METADATA,
    ],
    metadata={"w2v_ray.schema_version": str(SCHEMA_VERSION)},
)


def error_value(stage: str, error: Exception) -> dict[str, str]:
    """The value of the ``error`` column for ``error`` raised in ``stage``."""
    message = " ".join(str(error).split()) or "no message"
    return {"stage": stage, "error_class": type(error).__name__, "message": message}


def sized(schema: pa.Schema, found: pa.Schema) -> pa.Schema:
    """The schema with lists as long, and of such numbers, as ``found`` has them: those of the model."""
    for name in ("embedding", "activity"):
        place = schema.get_field_index(name)
        if place >= 0 and name in found.names:
            schema = schema.set(place, schema.field(place).with_type(found.field(name).type))
    return schema
