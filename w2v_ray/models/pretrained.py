"""Loading and saving, the same for every model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from w2v_ray.errors import CheckpointError, ConfigError, W2vRayError
from w2v_ray.models.attention import adds_bias, choose_attention
from w2v_ray.models.checkpoint import choose_dtype, fill_model, read_weights, save_model
from w2v_ray.models.int8 import Int8Linear

__all__ = ["PretrainedModel"]


class PretrainedModel(nn.Module):
    """A model that is built from a config and filled from a checkpoint.

    Args:
        config: What to build, of the class ``config_class``.
        attn_implementation: The attention kernel: "eager", "sdpa", "flash_attention_2",
            "flex_attention" or "auto".

    Attributes:
        attn_implementation: The kernel that was chosen.
        attn_reason: Why, in a sentence.

    Raises:
        ConfigError: The kernel is unknown or cannot compute what the config asks for.
        MissingExtraError: The kernel needs a package that is not installed.
    """

    config_class: ClassVar[type[Any]]
    base_model_prefix: ClassVar[str]  # the name of the encoder in the weights of models with a head
    main_input_name: ClassVar[str]  # the argument of ``forward`` that holds the audio

    config: Any

    def __init__(self, config: Any, *, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.attn_implementation, self.attn_reason = choose_attention(
            attn_implementation, bias=adds_bias(config)
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        config: Any = None,
        revision: str | None = None,
        dtype: torch.dtype | str = torch.float32,
        torch_dtype: torch.dtype | str | None = None,
        device_map: str | int | torch.device | Mapping[str, Any] | None = None,
        load_in_8bit: bool = False,
        attn_implementation: str = "sdpa",
        ignore_mismatched_sizes: bool = False,
        from_tf: bool = False,
        from_flax: bool = False,
        **options: Any,
    ) -> Self:
        """Loads a folder or hub id; the encoder alone is taken from a checkpoint that has a head, too.

        Args:
            model: A folder or hub id.
            config: Used instead of the checkpoint's ``config.json``.
            revision: Branch, tag or commit of a hub id.
            dtype: Of the weights in memory; "auto" takes the one they are stored in.
            torch_dtype: The older name of ``dtype``.
            device_map: The one device the model goes to, such as "cpu", "cuda:0" or 0; "auto" is the
                first GPU, or the CPU where there is none.
            load_in_8bit: Whether to keep the encoder's linear layers as 8-bit integers: a quarter of
                their memory in float32, half in float16, at about the speed of ``dtype``.
            attn_implementation: As of the constructor; "auto" also looks at device and dtype.
            ignore_mismatched_sizes: Whether a head that is missing or of another shape is drawn anew, and
                other heads are left; a warning names their weights. The same goes for adapters that
                the config adds to the encoder, and for no other weight that the encoder lacks.
            from_tf: Whether to read ``tf_model.h5``.
            from_flax: Whether to read ``flax_model.msgpack``.
            **options: Options of the config that take the place of the checkpoint's.

        Returns:
            The model in evaluation mode.

        Raises:
            CheckpointError: Files or weights are missing, unexpected or misshapen; it names them.
            ConfigError: An option is unknown, or cannot be had on this machine.
            MissingExtraError: A package is needed that is not installed.
        """
        if from_tf and from_flax:
            raise ConfigError("from_tf and from_flax are both true, expected at most one; choose one")
        if torch_dtype is not None and dtype not in (torch.float32, torch_dtype):
            raise ConfigError(f"dtype is {dtype} and torch_dtype {torch_dtype}, expected one; leave one out")
        device = _one_device(device_map)
        config = cls._config(model, revision, config, options)
        weights, source = read_weights(
            model, revision=revision, framework="tf" if from_tf else "flax" if from_flax else "torch"
        )
        target = choose_dtype(dtype if torch_dtype is None else torch_dtype, weights)
        attention, reason = choose_attention(
            attn_implementation, bias=adds_bias(config), dtype=target, device=device
        )
        module = fill_model(
            partial(cls, config, attn_implementation=attention),
            weights,
            source,
            encoder=cls.base_model_prefix,
            dtype=target,
            device=device,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            load_in_8bit=load_in_8bit,
        )
        for part in module.modules():
            if isinstance(part, PretrainedModel):
                part.attn_reason = reason
        return module

    @classmethod
    def _config(cls, model: str | Path, revision: str | None, config: Any, options: Mapping[str, Any]) -> Any:
        known = {f.name for f in dataclasses.fields(cls.config_class)} - {"extra"}
        if unknown := sorted(options.keys() - known):
            raise ConfigError(
                f"{cls.__name__}.from_pretrained has no option {unknown[0]!r}, and neither has "
                f"{cls.config_class.__name__}; leave it out"
            )
        if config is None:
            return cls.config_class.from_pretrained(model, revision=revision, **options)
        try:
            return cls.config_class.from_dict(config.to_dict(), **options)
        except W2vRayError as error:
            raise CheckpointError(f"config: {error}") from error

    def _asked(
        self, output_attentions: bool | None, output_hidden_states: bool | None, return_dict: bool | None
    ) -> tuple[dict[str, bool], bool]:
        """What ``forward`` is to return beyond its result, and whether by name; None: as the config says."""

        def chosen(value: bool | None, default: bool) -> bool:
            return default if value is None else value

        config = self.config
        asked = {
            "output_attentions": chosen(output_attentions, config.output_attentions),
            "output_hidden_states": chosen(output_hidden_states, config.output_hidden_states),
        }
        return asked, chosen(return_dict, config.return_dict)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes ``config.json`` and ``model.safetensors`` as transformers reads them.

        Raises:
            ConfigError: The model was loaded with ``load_in_8bit``.
        """
        if any(isinstance(part, Int8Linear) for part in self.modules()):
            raise ConfigError(
                "load_in_8bit was true, which rounded the weights; load the model without it to save it"
            )
        save_model(self, self.config, folder)


def _one_device(device_map: str | int | torch.device | Mapping[str, Any] | None) -> torch.device:
    wanted = device_map
    if isinstance(wanted, Mapping) and set(wanted) == {""}:
        wanted = wanted[""]
    if wanted is None:
        return torch.device("cpu")
    if wanted == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(wanted)  # type: ignore[arg-type]
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device_map is {device_map!r}, expected 'auto' or one device such as 'cpu' or 'cuda:0'; "
            "choose one of these"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device_map is {device_map!r}, expected a device of this machine, which has "
            f"{torch.cuda.device_count()} GPUs; choose 'auto' or 'cpu'"
        )
    return device
