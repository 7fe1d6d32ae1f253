"""Which samples of a recording are taken, as settings: checked here, used by jobs and stages alike."""

from __future__ import annotations

import re

from w2v_ray.errors import ConfigError

__all__ = ["CHANNELS", "MAX_CHANNEL", "ON_TRUNCATED", "check_channel", "check_vad"]

ON_TRUNCATED = ("mark", "reject")
MAX_CHANNEL = 31  # recordings with more than 32 channels are refused
CHANNELS = ("mix", "left", "right", "split")
_HOOK = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def check_channel(channel: str | int) -> str | int:
    """The channel as it is, digits as a number.

    Raises:
        ConfigError: It is not one of mix, left, right, split and 0 to 31.
    """
    number = int(channel) if isinstance(channel, str) and re.fullmatch(r"\d{1,9}", channel) else channel
    if number in CHANNELS or (type(number) is int and 0 <= number <= MAX_CHANNEL):
        return number
    raise ConfigError(
        f"channel is {channel!r}, expected mix, left, right, split or a number from 0 to {MAX_CHANNEL}; "
        "choose one of these"
    )


def check_vad(vad: str | None, *, keep_non_speech: bool) -> None:
    """Checks how a voice activity detector is named.

    Raises:
        ConfigError: It is not MODULE:FUNCTION, or there is none and ``keep_non_speech`` is off.
    """
    if vad is not None and not _HOOK.fullmatch(vad):
        raise ConfigError(f"vad is {vad!r}, expected MODULE:FUNCTION; name a function that can be imported")
    if vad is None and not keep_non_speech:
        raise ConfigError("keep_non_speech is false, which has no effect by itself; name vad too")
