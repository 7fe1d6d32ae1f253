"""Turn audio archives into tables of transcripts: wav2vec 2.0 on Ray Data.

Each name below is loaded when it is first used, so that ``import w2v_ray`` and the command line's
``--help`` need neither torch nor Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from w2v_ray.errors import (
    AudioLimitError,
    CheckpointError,
    ConfigError,
    DecodeError,
    EmptyAudioError,
    EncodeError,
    InputError,
    ItemError,
    MissingExtraError,
    OutputError,
    ReadError,
    TooShortError,
    W2vRayError,
)

__all__ = [
    "AudioLimitError",
    "AutoModelForCTC",
    "AutoProcessor",
    "CheckpointError",
    "ConfigError",
    "DecodeError",
    "EmptyAudioError",
    "EncodeError",
    "InputError",
    "ItemError",
    "JobConfig",
    "MissingExtraError",
    "OutputError",
    "ReadError",
    "RunSummary",
    "TooShortError",
    "W2vRayError",
    "Wav2Vec2CTCTokenizer",
    "Wav2Vec2Config",
    "Wav2Vec2FeatureExtractor",
    "Wav2Vec2ForCTC",
    "Wav2Vec2Model",
    "Wav2Vec2Processor",
    "__version__",
    "run",
    "transcribe",
]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from w2v_ray.audio.features import Wav2Vec2FeatureExtractor
    from w2v_ray.config import JobConfig
    from w2v_ray.job import RunSummary
    from w2v_ray.models.auto import AutoModelForCTC
    from w2v_ray.models.config import Wav2Vec2Config
    from w2v_ray.models.heads import Wav2Vec2ForCTC
    from w2v_ray.models.wav2vec2 import Wav2Vec2Model
    from w2v_ray.pipeline import run
    from w2v_ray.plugin import transcribe
    from w2v_ray.processors import AutoProcessor, Wav2Vec2Processor
    from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer
else:
    # Hidden from type checkers, which would take a module's __getattr__ to mean that any name exists.
    _MODULE_OF = {
        "AutoModelForCTC": "w2v_ray.models.auto",
        "AutoProcessor": "w2v_ray.processors",
        "JobConfig": "w2v_ray.config",
        "RunSummary": "w2v_ray.job",
        "Wav2Vec2CTCTokenizer": "w2v_ray.text.tokenizer",
        "Wav2Vec2Config": "w2v_ray.models.config",
        "Wav2Vec2FeatureExtractor": "w2v_ray.audio.features",
        "Wav2Vec2ForCTC": "w2v_ray.models.heads",
        "Wav2Vec2Model": "w2v_ray.models.wav2vec2",
        "Wav2Vec2Processor": "w2v_ray.processors",
        "run": "w2v_ray.pipeline",
        "transcribe": "w2v_ray.plugin",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted(globals().keys() | _MODULE_OF.keys())
