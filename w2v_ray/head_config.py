"""What the heads of an encoder are to give beside text: embeddings, labels and activity, as settings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from w2v_ray.decoder_config import DecoderConfig, check_choice, check_range
from w2v_ray.errors import ConfigError

__all__ = [
    "ACTIVATIONS",
    "EMBEDDING_DTYPES",
    "HEAD_BOUNDS",
    "HEAD_CHOICES",
    "POOLINGS",
    "TASKS",
    "TASK_SETTINGS",
    "HeadConfig",
    "read_also",
]

TASKS = ("transcribe", "embed", "classify", "frames")
POOLINGS = ("auto", "xvector", "mean", "mean+std")
EMBEDDING_DTYPES = ("float32", "float16")
ACTIVATIONS = ("auto", "sigmoid", "softmax")

HEAD_CHOICES = {"pooling": POOLINGS, "embedding_dtype": EMBEDDING_DTYPES, "activation": ACTIVATIONS}
"""By setting, the values that it takes."""

HEAD_BOUNDS: dict[str, tuple[float, float]] = {
    "layer": (0, 1000),
    "top_k": (1, 100_000),
    "threshold": (0, 1),
    "onset": (0, 1),
    "offset": (0, 1),
    "min_on_seconds": (0, 3600),
    "min_off_seconds": (0, 3600),
}
"""By setting, the bounds of its value."""

TASK_SETTINGS = {
    "embed": ("pooling", "layer", "embedding_dtype"),
    "classify": ("top_k", "threshold"),
    "frames": ("activation", "onset", "offset", "min_on_seconds", "min_off_seconds"),
}
"""The settings that belong to a task, apart from those of text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig(DecoderConfig):
    """What is wanted of the encoder: one task, others beside it, and the settings of each.

    Raises:
        ConfigError: A value is of the wrong type or out of bounds, or belongs to a task that nothing asks
            for.
    """

    task: str = "transcribe"
    """What the job does: ``transcribe``, ``embed``, ``classify`` or ``frames``."""

    also: tuple[str, ...] = ()
    """Other tasks in the same pass, as ``TASK=CHECKPOINT`` with the same encoder, or ``embed`` alone."""

    pooling: str = "auto"
    """How an embedding is made: ``xvector`` (the head for speakers), ``mean`` or ``mean+std`` of a layer's
    frames, or ``auto``: ``xvector`` where the checkpoint has that head, and ``mean`` where it has none."""

    layer: int | None = None
    """The layer that is pooled, from 0, the input of the first; null: the last."""

    embedding_dtype: str = "float32"
    """The numbers of embeddings in the table: ``float32`` or ``float16``."""

    top_k: int = 5
    """How many classes a row of labels names, at most."""

    threshold: float | None = None
    """Classes of at least this score (0 to 1) are named, each judged by itself; null: the ``top_k`` best."""

    activation: str = "auto"
    """Of frames: ``sigmoid`` (each class by itself), ``softmax`` (one at a time), or ``auto``: sigmoid unless
    the checkpoint says single_label_classification."""

    onset: float = 0.5
    """A turn begins where the score of a class reaches this (0 to 1)."""

    offset: float = 0.5
    """A turn ends where the score falls below this (0 to 1, at most ``onset``)."""

    min_on_seconds: float = 0.0
    """Turns that are shorter are dropped, in seconds."""

    min_off_seconds: float = 0.0
    """Pauses within a turn that are shorter are closed, in seconds."""

    def __post_init__(self) -> None:
        super(HeadConfig, self).__post_init__()  # slots make a new class, which a bare super() does not know
        check_choice("task", self.task, (*TASKS, "align"))
        object.__setattr__(self, "also", tuple(self.also))
        tasks = [self.task]
        for index, text in enumerate(self.also):
            task, _ = read_also(text, where=f"also[{index}]")
            if task in tasks:
                raise ConfigError(f"also[{index}] is {text!r}, and {task} is done already; name another task")
            tasks.append(task)
        for name, choices in HEAD_CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name, bounds in HEAD_BOUNDS.items():
            if (value := getattr(self, name)) is not None:
                check_range(name, value, *bounds)
        if self.layer is not None and self.pooling == "xvector":
            raise ConfigError(f"layer is {self.layer}, which pooling xvector has no use for; choose mean")
        if self.offset > self.onset:
            raise ConfigError(f"offset is {self.offset:g}, expected at most onset ({self.onset:g}); lower it")
        unused = {name: task for task, names in TASK_SETTINGS.items() if task not in tasks for name in names}
        if "transcribe" not in tasks:
            unused |= {field.name: "transcribe" for field in fields(DecoderConfig)}
        for field in fields(HeadConfig):
            value = getattr(self, field.name)
            if field.name in unused and value != field.default:
                raise ConfigError(
                    f"{field.name} is {value!r}, which only {unused[field.name]} has a use for; leave it out"
                    + ("" if self.task == "align" else f", or add {unused[field.name]} to also")
                )

    def head_fields(self) -> dict[str, Any]:
        """The settings of heads that decide what the rows are, without those that are as they were left.

        Checkpoints are names here: their content counts, which is for others to read.
        """
        own = {field.name for field in fields(HeadConfig)} - {field.name for field in fields(DecoderConfig)}
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in fields(HeadConfig)
            if field.name in own and (value := getattr(self, field.name)) != field.default
        }


def read_also(text: str, *, where: str = "also") -> tuple[str, str | None]:
    """The task and the checkpoint that an entry of ``also`` names; None: the job's own.

    Args:
        text: The entry.
        where: What it is called in errors.

    Raises:
        ConfigError: It is of another form.
    """
    task, equals, model = text.partition("=")
    task, model = task.strip(), model.strip()
    if task not in TASKS or (equals and not model):
        raise ConfigError(
            f"{where} is {text!r}, expected TASK=CHECKPOINT with a task of {', '.join(TASKS)}; "
            "write it as embed=CHECKPOINT"
        )
    if not equals and task != "embed":
        raise ConfigError(f"{where} is {text!r}, without a checkpoint; write {task}=CHECKPOINT")
    return task, model or None
