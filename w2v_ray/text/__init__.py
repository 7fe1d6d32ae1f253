"""Text: the CTC tokenizer and what turns emissions into words, in numpy alone: no torch, no Ray."""

from w2v_ray.text.added import AddedToken
from w2v_ray.text.greedy import CTCLabels, decode_greedy
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer
from w2v_ray.text.transcript import Character, Transcript, Word
from w2v_ray.text.words import Wav2Vec2CTCTokenizerOutput

__all__ = [
    "AddedToken",
    "CTCLabels",
    "Character",
    "Transcript",
    "Wav2Vec2CTCTokenizer",
    "Wav2Vec2CTCTokenizerOutput",
    "Word",
    "decode_greedy",
]
