"""Turn audio archives into tables of transcripts, embeddings and labels: wav2vec 2.0 on Ray Data.

Each name below is loaded when it is first used, so that ``import w2v_ray`` and the command line's
``--help`` need neither torch nor Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from w2v_ray.errors import (
    AlignError,
    AudioLimitError,
    CheckpointError,
    ConfigError,
    DecodeError,
    EmptyAudioError,
    EncodeError,
    InputError,
    ItemError,
    JobError,
    LanguageError,
    LanguageModelError,
    MissingExtraError,
    OutputError,
    ReadError,
    SegmentError,
    StageError,
    TooShortError,
    TruncatedError,
    W2vRayError,
    WorkerDeathError,
)

__all__ = [
    "AlignConfig",
    "AlignError",
    "AudioLimitError",
    "Audit",
    "AutoFeatureExtractor",
    "AutoModel",
    "AutoModelForAudioClassification",
    "AutoModelForAudioFrameClassification",
    "AutoModelForAudioXVector",
    "AutoModelForCTC",
    "AutoModelForPreTraining",
    "AutoProcessor",
    "AutoTokenizer",
    "CausalLMOutput",
    "CheckpointError",
    "ConfigError",
    "DecodeError",
    "DecoderConfig",
    "EmptyAudioError",
    "EncodeError",
    "ExportSummary",
    "FlaxCausalLMOutput",
    "FlaxWav2Vec2BaseModelOutput",
    "FlaxWav2Vec2ForCTC",
    "FlaxWav2Vec2ForPreTraining",
    "FlaxWav2Vec2ForPreTrainingOutput",
    "FlaxWav2Vec2Model",
    "InputError",
    "ItemError",
    "JobConfig",
    "JobError",
    "LanguageError",
    "LanguageModelError",
    "MissingExtraError",
    "OutputError",
    "ReadError",
    "RedecodeConfig",
    "Report",
    "RunSummary",
    "SeamlessM4TFeatureExtractor",
    "SegmentError",
    "SequenceClassifierOutput",
    "StageError",
    "TFWav2Vec2ForCTC",
    "TFWav2Vec2ForSequenceClassification",
    "TFWav2Vec2Model",
    "TokenClassifierOutput",
    "TooShortError",
    "TruncatedError",
    "W2vRayError",
    "Wav2Vec2BaseModelOutput",
    "Wav2Vec2BertConfig",
    "Wav2Vec2BertForAudioFrameClassification",
    "Wav2Vec2BertForCTC",
    "Wav2Vec2BertForSequenceClassification",
    "Wav2Vec2BertForXVector",
    "Wav2Vec2BertModel",
    "Wav2Vec2BertProcessor",
    "Wav2Vec2CTCTokenizer",
    "Wav2Vec2Config",
    "Wav2Vec2DecoderWithLMOutput",
    "Wav2Vec2FeatureExtractor",
    "Wav2Vec2ForAudioFrameClassification",
    "Wav2Vec2ForCTC",
    "Wav2Vec2ForPreTraining",
    "Wav2Vec2ForPreTrainingOutput",
    "Wav2Vec2ForSequenceClassification",
    "Wav2Vec2ForXVector",
    "Wav2Vec2Model",
    "Wav2Vec2Processor",
    "Wav2Vec2ProcessorWithLM",
    "WorkerDeathError",
    "XVectorOutput",
    "__version__",
    "align",
    "audit",
    "classify",
    "compact",
    "embed",
    "export",
    "label_frames",
    "read_embeddings",
    "read_output",
    "redecode",
    "run",
    "transcribe",
    "write_report",
]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from w2v_ray.align_config import AlignConfig
    from w2v_ray.audio.features import Wav2Vec2FeatureExtractor
    from w2v_ray.audio.seamless import SeamlessM4TFeatureExtractor
    from w2v_ray.config import JobConfig, RedecodeConfig
    from w2v_ray.dataset import read_output
    from w2v_ray.decoder_config import DecoderConfig
    from w2v_ray.embeddings import read_embeddings
    from w2v_ray.exports import ExportSummary, export
    from w2v_ray.job import RunSummary
    from w2v_ray.models.auto import (
        AutoModel,
        AutoModelForAudioClassification,
        AutoModelForAudioFrameClassification,
        AutoModelForAudioXVector,
        AutoModelForCTC,
        AutoModelForPreTraining,
    )
    from w2v_ray.models.bert_config import Wav2Vec2BertConfig
    from w2v_ray.models.config import Wav2Vec2Config
    from w2v_ray.models.flax import (
        FlaxCausalLMOutput,
        FlaxWav2Vec2BaseModelOutput,
        FlaxWav2Vec2ForCTC,
        FlaxWav2Vec2ForPreTraining,
        FlaxWav2Vec2ForPreTrainingOutput,
        FlaxWav2Vec2Model,
    )
    from w2v_ray.models.heads import (
        Wav2Vec2BertForAudioFrameClassification,
        Wav2Vec2BertForCTC,
        Wav2Vec2BertForSequenceClassification,
        Wav2Vec2ForAudioFrameClassification,
        Wav2Vec2ForCTC,
        Wav2Vec2ForSequenceClassification,
    )
    from w2v_ray.models.outputs import (
        CausalLMOutput,
        SequenceClassifierOutput,
        TokenClassifierOutput,
        Wav2Vec2BaseModelOutput,
        Wav2Vec2ForPreTrainingOutput,
        XVectorOutput,
    )
    from w2v_ray.models.pretraining import Wav2Vec2ForPreTraining
    from w2v_ray.models.tensorflow import (
        TFWav2Vec2ForCTC,
        TFWav2Vec2ForSequenceClassification,
        TFWav2Vec2Model,
    )
    from w2v_ray.models.wav2vec2 import Wav2Vec2Model
    from w2v_ray.models.wav2vec2_bert import Wav2Vec2BertModel
    from w2v_ray.models.xvector import Wav2Vec2BertForXVector, Wav2Vec2ForXVector
    from w2v_ray.output import Audit, audit, compact
    from w2v_ray.pipeline import redecode, run
    from w2v_ray.plugin import transcribe
    from w2v_ray.plugin_align import align
    from w2v_ray.plugin_heads import classify, embed, label_frames
    from w2v_ray.processors import (
        AutoFeatureExtractor,
        AutoProcessor,
        AutoTokenizer,
        Wav2Vec2BertProcessor,
        Wav2Vec2DecoderWithLMOutput,
        Wav2Vec2Processor,
        Wav2Vec2ProcessorWithLM,
    )
    from w2v_ray.report import Report, write_report
    from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer
else:
    # Hidden from type checkers, which would take a module's __getattr__ to mean that any name exists.
    _MODULE_OF = {
        "AlignConfig": "w2v_ray.align_config",
        "Audit": "w2v_ray.output",
        "AutoFeatureExtractor": "w2v_ray.processors",
        "AutoModel": "w2v_ray.models.auto",
        "AutoModelForAudioClassification": "w2v_ray.models.auto",
        "AutoModelForAudioFrameClassification": "w2v_ray.models.auto",
        "AutoModelForAudioXVector": "w2v_ray.models.auto",
        "AutoModelForCTC": "w2v_ray.models.auto",
        "AutoModelForPreTraining": "w2v_ray.models.auto",
        "AutoProcessor": "w2v_ray.processors",
        "AutoTokenizer": "w2v_ray.processors",
        "CausalLMOutput": "w2v_ray.models.outputs",
        "DecoderConfig": "w2v_ray.decoder_config",
        "ExportSummary": "w2v_ray.exports",
        "FlaxCausalLMOutput": "w2v_ray.models.flax",
        "FlaxWav2Vec2BaseModelOutput": "w2v_ray.models.flax",
        "FlaxWav2Vec2ForCTC": "w2v_ray.models.flax",
        "FlaxWav2Vec2ForPreTraining": "w2v_ray.models.flax",
        "FlaxWav2Vec2ForPreTrainingOutput": "w2v_ray.models.flax",
        "FlaxWav2Vec2Model": "w2v_ray.models.flax",
        "JobConfig": "w2v_ray.config",
        "RedecodeConfig": "w2v_ray.config",
        "Report": "w2v_ray.report",
        "RunSummary": "w2v_ray.job",
        "SeamlessM4TFeatureExtractor": "w2v_ray.audio.seamless",
        "SequenceClassifierOutput": "w2v_ray.models.outputs",
        "TFWav2Vec2ForCTC": "w2v_ray.models.tensorflow",
        "TFWav2Vec2ForSequenceClassification": "w2v_ray.models.tensorflow",
        "TFWav2Vec2Model": "w2v_ray.models.tensorflow",
        "TokenClassifierOutput": "w2v_ray.models.outputs",
        "Wav2Vec2BaseModelOutput": "w2v_ray.models.outputs",
        "Wav2Vec2BertConfig": "w2v_ray.models.bert_config",
        "Wav2Vec2BertForAudioFrameClassification": "w2v_ray.models.heads",
        "Wav2Vec2BertForCTC": "w2v_ray.models.heads",
        "Wav2Vec2BertForSequenceClassification": "w2v_ray.models.heads",
        "Wav2Vec2BertForXVector": "w2v_ray.models.xvector",
        "Wav2Vec2BertModel": "w2v_ray.models.wav2vec2_bert",
        "Wav2Vec2BertProcessor": "w2v_ray.processors",
        "Wav2Vec2CTCTokenizer": "w2v_ray.text.tokenizer",
        "Wav2Vec2Config": "w2v_ray.models.config",
        "Wav2Vec2DecoderWithLMOutput": "w2v_ray.processors",
        "Wav2Vec2FeatureExtractor": "w2v_ray.audio.features",
        "Wav2Vec2ForAudioFrameClassification": "w2v_ray.models.heads",
        "Wav2Vec2ForCTC": "w2v_ray.models.heads",
        "Wav2Vec2ForPreTraining": "w2v_ray.models.pretraining",
        "Wav2Vec2ForPreTrainingOutput": "w2v_ray.models.outputs",
        "Wav2Vec2ForSequenceClassification": "w2v_ray.models.heads",
        "Wav2Vec2ForXVector": "w2v_ray.models.xvector",
        "Wav2Vec2Model": "w2v_ray.models.wav2vec2",
        "Wav2Vec2Processor": "w2v_ray.processors",
        "Wav2Vec2ProcessorWithLM": "w2v_ray.processors",
        "XVectorOutput": "w2v_ray.models.outputs",
        "align": "w2v_ray.plugin_align",
        "export": "w2v_ray.exports",
        "audit": "w2v_ray.output",
        "classify": "w2v_ray.plugin_heads",
        "compact": "w2v_ray.output",
        "embed": "w2v_ray.plugin_heads",
        "label_frames": "w2v_ray.plugin_heads",
        "read_embeddings": "w2v_ray.embeddings",
        "read_output": "w2v_ray.dataset",
        "redecode": "w2v_ray.pipeline",
        "run": "w2v_ray.pipeline",
        "transcribe": "w2v_ray.plugin",
        "write_report": "w2v_ray.report",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted(globals().keys() | _MODULE_OF.keys())
