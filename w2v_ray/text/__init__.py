"""Text: the CTC tokenizer and what turns emissions into words, in numpy alone: no torch, no Ray."""

from w2v_ray.text.added import AddedToken
from w2v_ray.text.align import ForcedAlignment, forced_align, forced_align_batch
from w2v_ray.text.align_text import AlignedSpan, TextAlignment, align_texts, frame_times
from w2v_ray.text.alphabet import Alphabet, build_alphabet
from w2v_ray.text.beam import BeamSearchDecoderCTC, Hypothesis, OutputBeam, TextToken, build_ctcdecoder
from w2v_ray.text.fusion import FusionWeights, LanguageModel
from w2v_ray.text.greedy import CTCLabels, decode_greedy
from w2v_ray.text.language_model import KenlmModel, NgramModel, open_language_model
from w2v_ray.text.spelling import Spelling
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer
from w2v_ray.text.transcript import Character, Transcript, Word
from w2v_ray.text.words import Wav2Vec2CTCTokenizerOutput

__all__ = [
    "AddedToken",
    "AlignedSpan",
    "Alphabet",
    "BeamSearchDecoderCTC",
    "CTCLabels",
    "Character",
    "ForcedAlignment",
    "FusionWeights",
    "Hypothesis",
    "KenlmModel",
    "LanguageModel",
    "NgramModel",
    "OutputBeam",
    "Spelling",
    "TextAlignment",
    "TextToken",
    "Transcript",
    "Wav2Vec2CTCTokenizer",
    "Wav2Vec2CTCTokenizerOutput",
    "Word",
    "align_texts",
    "build_alphabet",
    "build_ctcdecoder",
    "decode_greedy",
    "forced_align",
    "forced_align_batch",
    "frame_times",
    "open_language_model",
]
