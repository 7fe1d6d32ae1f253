"""Processors: a feature extractor and a tokenizer as one object, with a language model's decoder or without.

The ``Auto`` classes tell from the files alone which class a checkpoint needs, and refuse what is not built
here.
"""

from w2v_ray.processors.auto import AutoFeatureExtractor, AutoProcessor, AutoTokenizer
from w2v_ray.processors.processor import Wav2Vec2BertProcessor, Wav2Vec2Processor
from w2v_ray.processors.with_lm import Wav2Vec2DecoderWithLMOutput, Wav2Vec2ProcessorWithLM

__all__ = [
    "AutoFeatureExtractor",
    "AutoProcessor",
    "AutoTokenizer",
    "Wav2Vec2BertProcessor",
    "Wav2Vec2DecoderWithLMOutput",
    "Wav2Vec2Processor",
    "Wav2Vec2ProcessorWithLM",
]
