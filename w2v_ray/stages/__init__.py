"""One stage per file, in the order of the flow: a table of items or segments in, a table out.

Each name below is loaded when it is first used: most stages need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = [
    "AlignText",
    "AlignTextConfig",
    "ChooseLabels",
    "ChooseLabelsConfig",
    "DecodeAudio",
    "DecodeAudioConfig",
    "DecodeText",
    "DecodeTextConfig",
    "Encode",
    "EncodeConfig",
    "FindTurns",
    "FindTurnsConfig",
    "ReadAudio",
    "ReadAudioConfig",
    "SegmentAudio",
    "SegmentAudioConfig",
    "TakeAudio",
    "TakeLanguage",
    "TakeLanguageConfig",
    "WriteParquet",
    "WriteParquetConfig",
]

if TYPE_CHECKING:
    from w2v_ray.stages.align_text import AlignText, AlignTextConfig
    from w2v_ray.stages.choose_labels import ChooseLabels, ChooseLabelsConfig
    from w2v_ray.stages.decode_audio import DecodeAudio, DecodeAudioConfig
    from w2v_ray.stages.decode_text import DecodeText, DecodeTextConfig
    from w2v_ray.stages.encode import Encode
    from w2v_ray.stages.encode_config import EncodeConfig
    from w2v_ray.stages.find_turns import FindTurns, FindTurnsConfig
    from w2v_ray.stages.read_audio import ReadAudio, ReadAudioConfig
    from w2v_ray.stages.segment_audio import SegmentAudio, SegmentAudioConfig
    from w2v_ray.stages.take_audio import TakeAudio
    from w2v_ray.stages.take_language import TakeLanguage, TakeLanguageConfig
    from w2v_ray.stages.write_parquet import WriteParquet, WriteParquetConfig
else:
    # Hidden from type checkers, which would take a module's __getattr__ to mean that any name exists.

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import re
        from importlib import import_module

        stage = name if name == "EncodeConfig" else name.removesuffix("Config")
        words = re.sub(r"(?<!^)(?=[A-Z])", "_", stage).lower()
        value = globals()[name] = getattr(import_module(f"{__name__}.{words}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted(globals().keys() | set(__all__))
