"""Text: the CTC tokenizer and what turns emissions into words, in numpy alone: no torch, no Ray."""

from w2v_ray.text.added import AddedToken
from w2v_ray.text.align import ForcedAlignment, forced_align, forced_align_batch
from w2v_ray.text.align_text import AlignedSpan, TextAlignment, align_texts, frame_times
from w2v_ray.text.greedy import CTCLabels, GreedyResult, Word, decode_greedy
from w2v_ray.text.spelling import Spelling
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer
from w2v_ray.text.words import Wav2Vec2CTCTokenizerOutput

__all__ = [
    "AddedToken",
    "AlignedSpan",
    "CTCLabels",
    "ForcedAlignment",
    "GreedyResult",
    "Spelling",
    "TextAlignment",
    "Wav2Vec2CTCTokenizer",
    "Wav2Vec2CTCTokenizerOutput",
    "Word",
    "align_texts",
    "decode_greedy",
    "forced_align",
    "forced_align_batch",
    "frame_times",
]
