"""What an alignment job is: a job whose recordings come with their text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from w2v_ray.config import JobConfig
from w2v_ray.errors import ConfigError

__all__ = ["AlignConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignConfig(JobConfig):
    """One alignment job: as a `JobConfig`, and where each recording's text is.

    Raises:
        ConfigError: As of `JobConfig`.
    """

    task: str = "align"
    """Always ``align``."""

    text_key: str = "text"
    """The key of the text in what the inputs say of a recording: a manifest's key, or a tar's sidecar."""

    def __post_init__(self) -> None:
        JobConfig.__post_init__(self)  # a slotted dataclass is made twice, and super() knows only the first
        if self.task != "align" or self.also:
            raise ConfigError(
                f"task is {self.task!r} and also {list(self.also)!r}, an alignment is alone; leave them out"
            )
        if self.channel == "split":
            raise ConfigError("channel is 'split', and a text is of one signal; choose a channel, or mix")
        if not self.text_key:
            raise ConfigError("text_key is '', expected a key of the manifest; name the text's")

    def fingerprint_fields(self) -> dict[str, Any]:
        """The settings that decide what the rows of the output are, and which table they are of."""
        return JobConfig.fingerprint_fields(self) | {"text_key": self.text_key}
