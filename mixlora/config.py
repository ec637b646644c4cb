"""`MixLoraConfig`: every setting of the method, validated when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.utils import CONFIG_NAME

from .ffn import split_targets
from .moe import FORWARDS
from .router import ROUTINGS
from .shown import one_line, shown


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

#: Bytes of the largest adapter_config.json that is read; a real one has about a thousand.
LARGEST_CONFIG = 2**20

#: The largest rank and number of experts: beyond any use, and a file that has more asks for memory
#: before anybody has looked at its weights.
LARGEST_SIZE = 2**16


@dataclass
class MixLoraConfig(PeftConfig):
    """Settings of MixLoRA (arXiv 2404.15159); used like PEFT's `LoraConfig`.

    The defaults are the paper's Table 3, with the auxiliary-loss coefficient of its Table 9 (best
    value, and the released code's).

    Raises:
        ValueError: A field has a value that is not allowed.
    """

    r: int = field(default=16, metadata={"help": "Rank of every expert and of the attention LoRA"})
    lora_alpha: float = field(
        default=32, metadata={"help": "Adapter outputs are scaled by lora_alpha / r"}
    )
    lora_dropout: float = field(
        default=0.05, metadata={"help": "Dropout on adapter inputs while training"}
    )
    num_experts: int = field(default=8, metadata={"help": "Experts per FFN (E)"})
    top_k: int = field(default=2, metadata={"help": "Experts a token is sent to (K)"})
    use_dora: bool = field(
        default=False, metadata={"help": "DoRA instead of LoRA throughout: MixDoRA"}
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
            "help": "Standard deviation of the router's init. None: 0.02, for routing='switch' 1"
        },
    )
    routing: str = field(
        default="top_k",
        metadata={
            "help": "top_k: the paper's; top_p and switch: the released code's mixlora-dynamic and "
            "mixlora-switch, see router.py"
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
    forward: str = field(
        default="fused",
        metadata={
            "help": f"How the experts are computed, with equal results: {', '.join(FORWARDS)}"
        },
    )
    init_lora_weights: bool = field(
        default=True,
        metadata={
            "help": "True: B is zero, so every expert starts as the frozen FFN. False: B is random"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        if self.target_modules is not None:
            self.target_modules = _names("target_modules", self.target_modules)
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
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"{name}={shown(getattr(self, name))}: expected a text or None")
        for name in ("use_dora", "aux_loss_over_padding", "init_lora_weights"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={shown(getattr(self, name))}: expected True or False")
        for name, allowed in (("forward", tuple(FORWARDS)), ("routing", ROUTINGS)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in allowed:
                raise ValueError(f"{name}={shown(value)}: expected one of {', '.join(allowed)}")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        """As of every PEFT config, but what is wrong with the file is said with its name.

        Raises:
            ValueError: It cannot be read, has more than `LARGEST_CONFIG` bytes, or a setting has a
                value that is not allowed.
        """
        where = Path(pretrained_model_name_or_path, subfolder or "", CONFIG_NAME)
        try:
            if where.is_file() and where.stat().st_size > LARGEST_CONFIG:
                raise ValueError(f"more than {LARGEST_CONFIG:,} bytes")
            return super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        except KeyError as error:
            raise ValueError(f"{where}: peft_type={error}: PEFT knows no such method") from error
        except (OSError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{where}: {one_line(error)}") from error

    @property
    def attention_targets(self) -> frozenset[str]:
        """Names of the targeted projections that get plain LoRA."""
        return split_targets(self.target_modules or ())[0]

    @property
    def ffn_targets(self) -> frozenset[str]:
        """Names of the targeted projections that get experts."""
        return split_targets(self.target_modules or ())[1]

    def attention_config(self) -> LoraConfig:
        """The attention projections' `LoraConfig`: same rank, scale, dropout and DoRA switch."""
        return LoraConfig(
            r=self.r,
            lora_alpha=self.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=self.lora_dropout,
            use_dora=self.use_dora,
            init_lora_weights=self.init_lora_weights,
            target_modules=sorted(self.attention_targets),
            inference_mode=self.inference_mode,
        )


def _names(field_name: str, value: Any) -> set[str]:
    listed = isinstance(value, (list, tuple, set, frozenset))
    if not listed or not all(isinstance(name, str) and name for name in value):
        raise ValueError(
            f"{field_name}={shown(value)}: expected a list of names, such as ['q_proj', 'up_proj']"
        )
    if not value:
        raise ValueError(
            f"{field_name}={shown(value)}: expected at least one projection name, or None for all"
        )
    return set(value)


def _check_int(
    name: str, value: Any, least: int, most: int | None = None, most_name: str = ""
) -> None:
    allowed = f"a whole number of at least {least}"
    if most is not None:
        allowed += f" and at most {f'{most_name} ({most})' if most_name else most}"
    wrong_type = not isinstance(value, int) or isinstance(value, bool)
    if wrong_type or value < least or (most is not None and value > most):
        raise ValueError(f"{name}={shown(value)}: expected {allowed}")


def _check_number(
    name: str,
    value: Any,
    least: float | None = None,
    above: float | None = None,
    below: float = math.inf,
    most: float = math.inf,
) -> None:
    bounds = [f"at least {least:g}" if least is not None else f"above {above:g}"]
    if below != math.inf:
        bounds.append(f"below {below:g}")
    if most != math.inf:
        bounds.append(f"at most {most:g}")
    if (
        not _is_finite(value)
        or (least is not None and value < least)
        or (above is not None and value <= above)
        or value >= below
        or value > most
    ):
        raise ValueError(f"{name}={shown(value)}: expected a finite number {' and '.join(bounds)}")


def _is_finite(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False
