"""`MixLoraConfig`: every setting of the method, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils import CONFIG_NAME

from .messages import one_line, short_repr


class _MixLoraType(str):
    """PEFT's name for this method.

    PEFT keys its registries by an enum that cannot be extended; a `str` that also has the enum's
    ``value`` works as a key in all of them.
    """

    @property
    def value(self) -> str:
        return str(self)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (str(self),)


PEFT_TYPE = _MixLoraType("MIXLORA")

#: The ways in which tokens are sent to experts; router.py has one class for each.
ROUTINGS = ("top_k", "top_p", "switch")

#: The ways in which the experts are computed, with equal results; experts/ has one function for
#: each.
EXPERTS_IMPLEMENTATIONS = ("auto", "naive", "vanilla", "shared", "masked", "grouped")

#: ``forward``, as the setting was called in earlier versions -> ``experts_implementation``.
FORWARDS = {"vanilla": "vanilla", "shared": "shared", "fused": "auto"}

#: Largest adapter_config.json that is read, in bytes; a real one has about a thousand.
LARGEST_CONFIG = 2**20

#: Largest rank and number of experts. Nobody uses as many, and a damaged file with a larger number
#: would ask for memory before anybody has looked at its weights.
LARGEST_SIZE = 2**16


@dataclass
class MixLoraConfig(PeftConfig):
    """Settings of MixLoRA (arXiv 2404.15159); used like PEFT's `LoraConfig`.

    The defaults are the paper's Table 3, with the auxiliary-loss coefficient of its Table 9 (the
    best value there, and the released code's). ``forward`` is the former name of
    ``experts_implementation``: it is still read, from old files too, and not stored.

    Raises:
        ValueError: A field has a value that is not allowed.
    """

    r: int = field(default=16, metadata={"help": "Rank of every expert and of the attention LoRA"})
    lora_alpha: float = field(
        default=32, metadata={"help": "Adapter outputs are scaled by lora_alpha / r"}
    )
    lora_dropout: float = field(
        default=0.05, metadata={"help": "Dropout on adapter inputs during training"}
    )
    num_experts: int = field(default=8, metadata={"help": "Number of experts per FFN (E)"})
    top_k: int = field(default=2, metadata={"help": "Number of experts per token (K)"})
    use_dora: bool = field(
        default=False, metadata={"help": "Use DoRA instead of LoRA everywhere: MixDoRA"}
    )
    target_modules: list[str] | set[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the projections to adapt; those in the FFN get experts, those in "
            "attention plain LoRA. None: all of the model family's"
        },
    )
    router_aux_loss_coef: float = field(
        default=0.001, metadata={"help": "Weight of the load-balancing loss in outputs.loss"}
    )
    aux_loss_over_padding: bool = field(
        default=False,
        metadata={"help": "Balance the load of padding too, as the authors' first releases did"},
    )
    router_init_std: float | None = field(
        default=None,
        metadata={
            "help": "Standard deviation of the router's initialisation. None: 0.02, or 1 with "
            "routing='switch'"
        },
    )
    routing: str = field(
        default="top_k",
        metadata={
            "help": "top_k is the paper's; top_p and switch are the released code's "
            "mixlora-dynamic and mixlora-switch, see router.py"
        },
    )
    top_p: float = field(
        default=0.8, metadata={"help": "routing='top_p': experts are taken up to this probability"}
    )
    expert_capacity: int = field(
        default=32,
        metadata={"help": "routing='switch': tokens of a row that an expert takes at most"},
    )
    router_z_loss_coef: float = field(
        default=0.001, metadata={"help": "routing='switch': weight of the z-loss in outputs.loss"}
    )
    experts_implementation: str = field(
        default="auto",
        metadata={
            "help": "How the experts are computed, with equal results: "
            f"{', '.join(EXPERTS_IMPLEMENTATIONS)} (naive without dropout, grouped without DoRA)"
        },
    )
    init_lora_weights: bool = field(
        default=True,
        metadata={
            "help": "True: B is zero, so every expert starts as the frozen FFN. False: B is random"
        },
    )
    forward: InitVar[str | None] = None

    def __post_init__(self, forward: str | None) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        if forward is not None:
            _check_choice("forward", forward, tuple(FORWARDS))
            if self.experts_implementation not in ("auto", FORWARDS[forward]):
                raise ValueError(
                    f"forward={forward!r}: expected it alone, it is the former name of "
                    f"experts_implementation={self.experts_implementation!r}"
                )
            self.experts_implementation = FORWARDS[forward]
        if self.target_modules is not None:
            self.target_modules = _check_names("target_modules", self.target_modules)
        if self.router_init_std is None:
            self.router_init_std = 1.0 if self.routing == "switch" else 0.02
        _check_int("r", self.r, 1, LARGEST_SIZE)
        _check_int("num_experts", self.num_experts, 1, LARGEST_SIZE)
        _check_int("top_k", self.top_k, 1, self.num_experts, "num_experts")
        _check_number("lora_alpha", self.lora_alpha, above=0.0)
        _check_number("lora_dropout", self.lora_dropout, least=0.0, below=1.0)
        _check_number("router_aux_loss_coef", self.router_aux_loss_coef, least=0.0)
        _check_number("router_init_std", self.router_init_std, least=0.0)
        _check_number("top_p", self.top_p, above=0.0, most=1.0)
        _check_int("expert_capacity", self.expert_capacity, 1)
        _check_number("router_z_loss_coef", self.router_z_loss_coef, least=0.0)
        for name in ("base_model_name_or_path", "revision"):
            value = getattr(self, name)
            if not isinstance(value, str | None):
                raise ValueError(f"{name}={short_repr(value)}: expected a text or None")
        for name in ("use_dora", "aux_loss_over_padding", "init_lora_weights"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"{name}={short_repr(value)}: expected True or False")
        _check_choice("routing", self.routing, ROUTINGS)
        _check_choice(
            "experts_implementation", self.experts_implementation, EXPERTS_IMPLEMENTATIONS
        )
        if self.experts_implementation == "grouped" and self.use_dora:
            raise ValueError(
                "experts_implementation='grouped': expected another one with use_dora=True, which "
                "it cannot compute"
            )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        """Read a configuration as every PEFT config does, with the file's name in every error.

        Raises:
            ValueError: The file cannot be read, has more than `LARGEST_CONFIG` bytes, or has a
                setting with a value that is not allowed.
        """
        file = Path(pretrained_model_name_or_path, subfolder or "", CONFIG_NAME)
        try:
            if file.is_file() and file.stat().st_size > LARGEST_CONFIG:
                raise ValueError(f"more than {LARGEST_CONFIG:,} bytes")
            return super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        except KeyError as error:
            raise ValueError(f"{file}: peft_type={error}: PEFT knows no such method") from error
        except (OSError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{file}: {one_line(error)}") from error


def _check_names(field_name: str, value: Any) -> set[str]:
    is_list = isinstance(value, (list, tuple, set, frozenset))
    if not is_list or not all(isinstance(name, str) and name for name in value):
        raise ValueError(
            f"{field_name}={short_repr(value)}: expected a list of names, such as "
            "['q_proj', 'up_proj']"
        )
    if not value:
        raise ValueError(
            f"{field_name}={short_repr(value)}: expected at least one projection name, or None "
            "for all"
        )
    return set(value)


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}={short_repr(value)}: expected one of {', '.join(allowed)}")


def _check_int(
    name: str, value: Any, least: int, most: int | None = None, most_name: str = ""
) -> None:
    allowed = f"a whole number of at least {least}"
    if most is not None:
        allowed += f" and at most {f'{most_name} ({most})' if most_name else most}"
    wrong_type = not isinstance(value, int) or isinstance(value, bool)
    if wrong_type or value < least or (most is not None and value > most):
        raise ValueError(f"{name}={short_repr(value)}: expected {allowed}")


def _check_number(
    name: str,
    value: Any,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
) -> None:
    bounds = {"at least": least, "above": above, "below": below, "at most": most}
    in_bounds = _is_finite(value) and above < value < below and least <= value <= most
    if not in_bounds:
        allowed = " and ".join(f"{k} {v:g}" for k, v in bounds.items() if math.isfinite(v))
        raise ValueError(f"{name}={short_repr(value)}: expected a finite number {allowed}")


def _is_finite(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number larger than every float
        return False
