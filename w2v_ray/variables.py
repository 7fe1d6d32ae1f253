"""Variables of the environment in settings: ``${NAME}`` and ``${NAME:-DEFAULT}`` in texts.

What a variable holds is put into the text and never read as YAML, so that it can add no settings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from w2v_ray.errors import ConfigError

__all__ = ["fill", "fill_all", "names_variable", "plain_value"]

_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^{}]*))?\}|\$\{", re.ASCII)
_WHOLE = re.compile(r"[-+]?\d{1,30}", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?", re.ASCII)


def names_variable(value: object) -> bool:
    """Whether a value is a text that `fill` has something to do in."""
    return isinstance(value, str) and "${" in value


def fill(text: str, *, where: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with what its variables hold in their places, and ``${`` for ``$${``.

    An empty variable counts as none: what it would leave of a path is seldom what was meant.

    Args:
        text: With any number of ``${NAME}`` and ``${NAME:-DEFAULT}``.
        where: The setting, for errors.
        environment: Where variables are looked up; None: that of this process.

    Raises:
        ConfigError: A variable without a default is empty or not set, or ``${`` begins something else. What
            variables hold is not repeated.
    """
    environment = os.environ if environment is None else environment

    def value_of(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if match[0] == "$${":
            return "${"
        if name is None:
            raise ConfigError(
                f"{where} is {text!r}, in which a variable is not closed or not named as one; write "
                "${NAME} or ${NAME:-DEFAULT}, or $${ for the characters themselves"
            )
        if value := environment.get(name, ""):
            return value
        if default is None:
            state = "empty" if name in environment else "not set"
            raise ConfigError(
                f"{where} takes the variable {name}, which is {state}; set it, or write ${{{name}:-DEFAULT}}"
            )
        return default

    return _REFERENCE.sub(value_of, text)


def fill_all(value: Any, *, where: str) -> Any:
    """A copy of texts, lists and mappings with what their variables hold; keys stay as they are."""
    if isinstance(value, str):
        return fill(value, where=where)
    if isinstance(value, Mapping):
        return {name: fill_all(inner, where=f"{where}.{name}") for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [fill_all(inner, where=f"{where}[{index}]") for index, inner in enumerate(value)]
    return value


def plain_value(text: str) -> str | int | float | bool:
    """The number or truth value that a text spells; the text itself where it spells none."""
    if text in ("true", "false"):
        return text == "true"
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text
