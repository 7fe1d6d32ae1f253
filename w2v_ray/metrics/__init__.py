"""How good transcripts, speaker scores, labels and turns are; each in the field's usual definition."""

from w2v_ray.metrics.classification import (
    ClassificationReport,
    LabelScores,
    classification_accuracy,
    classification_report,
    top_k_accuracy,
)
from w2v_ray.metrics.diarization import DiarizationErrors, diarization_error_rate, diarization_errors
from w2v_ray.metrics.verification import DetectionCost, EqualError, equal_error_rate, min_detection_cost
from w2v_ray.metrics.words import (
    WordErrors,
    bootstrap_interval,
    character_error_rate,
    character_errors,
    word_error_rate,
    word_errors,
)

__all__ = [
    "ClassificationReport",
    "DetectionCost",
    "DiarizationErrors",
    "EqualError",
    "LabelScores",
    "WordErrors",
    "bootstrap_interval",
    "character_error_rate",
    "character_errors",
    "classification_accuracy",
    "classification_report",
    "diarization_error_rate",
    "diarization_errors",
    "equal_error_rate",
    "min_detection_cost",
    "top_k_accuracy",
    "word_error_rate",
    "word_errors",
]
