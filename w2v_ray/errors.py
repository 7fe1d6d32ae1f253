"""Every exception this package raises on purpose.

    W2vRayError
    +-- ConfigError          a setting of the job is unknown, of the wrong type or out of bounds
    +-- InputError           the inputs that were named do not exist or hold no audio
    +-- OutputError          the output cannot be written, or belongs to another job
    +-- CheckpointError      a model's files are missing, malformed or do not fit its config
    +-- LanguageModelError   a language model, or the text to make one from, cannot be read or used
    +-- MissingExtraError    an optional package is needed (also an ImportError)
    +-- JobError             a job cannot go on: nothing moves, or its workers die again and again
    +-- ItemError            one recording or segment failed: it becomes a row of ``rejects/``
        +-- ReadError        its bytes could not be fetched
        +-- DecodeError      its bytes are not audio that any codec here can decode
        +-- TruncatedError   it is shorter than its header or its plan says
        +-- AudioLimitError  its rate, channel count, length or samples are outside what is accepted
        +-- EmptyAudioError  it decodes to no samples at all
        +-- TooShortError    it has fewer samples than the encoder needs for one frame
        +-- LanguageError    its language is not told, or the checkpoint has no adapter or vocabulary for it
        +-- SegmentError     the voice activity detector of the job failed on it
        +-- EncodeError      the encoder failed on this item alone
        +-- AlignError       its text is missing, or cannot be aligned with it
        +-- StageError       a stage failed on it in a way that it should not: a defect to report
        +-- WorkerDeathError it kills the process that touches it, or takes longer than it may

The message of each is one sentence that names the value, what was expected and the fix.
The first seven stop a job before or while it runs; an ``ItemError`` never does.
"""

__all__ = [
    "AlignError",
    "AudioLimitError",
    "CheckpointError",
    "ConfigError",
    "DecodeError",
    "EmptyAudioError",
    "EncodeError",
    "InputError",
    "ItemError",
    "JobError",
    "LanguageError",
    "LanguageModelError",
    "MissingExtraError",
    "OutputError",
    "ReadError",
    "SegmentError",
    "StageError",
    "TooShortError",
    "TruncatedError",
    "W2vRayError",
    "WorkerDeathError",
]


class W2vRayError(Exception):
    """The root of all errors raised on purpose."""


class ConfigError(W2vRayError, ValueError):
    """A setting of the job is unknown, of the wrong type or out of bounds."""


class InputError(W2vRayError):
    """The inputs that were named do not exist or hold no audio."""


class OutputError(W2vRayError):
    """The output cannot be written, or belongs to another job."""


class CheckpointError(W2vRayError):
    """A model's files are missing, malformed or do not fit its config."""


class LanguageModelError(W2vRayError, ValueError):
    """A language model, or the text to make one from, cannot be read or used."""


class MissingExtraError(W2vRayError, ImportError):
    """An optional package is needed; the message names the extra to install."""


class JobError(W2vRayError):
    """A job cannot go on: nothing moves, or its workers die again and again."""


class ItemError(W2vRayError):
    """One recording or segment failed; it becomes a row of ``rejects/`` and the job goes on."""


class ReadError(ItemError):
    """The bytes of an item could not be fetched."""


class DecodeError(ItemError):
    """The bytes of an item are not audio that any codec here can decode."""


class TruncatedError(ItemError):
    """An item is shorter than its header or its plan says."""


class AudioLimitError(ItemError):
    """The rate, channel count, length or samples of an item are outside what is accepted."""


class EmptyAudioError(ItemError):
    """An item decodes to no samples at all."""


class TooShortError(ItemError):
    """An item has fewer samples than the encoder needs for one frame."""


class LanguageError(ItemError):
    """The language of an item is not told, or the checkpoint has no adapter or vocabulary for it."""


class SegmentError(ItemError):
    """The voice activity detector of the job failed on an item."""


class EncodeError(ItemError):
    """The encoder failed on this item alone."""


class AlignError(ItemError):
    """The text of an item is missing, or cannot be aligned with it."""


class StageError(ItemError):
    """A stage failed on an item in a way that it should not."""


class WorkerDeathError(ItemError):
    """An item kills the process that touches it, or takes longer than it may."""
