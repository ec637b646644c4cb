"""The quirks of the released code, each of which can be switched on.

Users could not reproduce the paper's numbers with the code that is said to have made them. Each
quirk is something that this code does and the paper does not say. The ``clean`` protocol has none
of them, the ``upstream`` protocol has them all. `harness.run` and `tasks.encoding` make a cell
behave so; this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from tasks.names import choose

from .spec import OWN, RunSpec

#: Name of a protocol -> whether its cells have all quirks.
PROTOCOLS = {"clean": False, "upstream": True}


@dataclass(frozen=True)
class Quirk:
    """One quirk.

    Attributes:
        name: name on the command line.
        effect: what the released code does, in words for tables.
        concerns: says of a cell, by its settings, whether the quirk can make a difference to it.
        needs: the cells that the quirk can make a difference to, in words.
    """

    name: str
    effect: str
    concerns: Callable[[RunSpec], bool]
    needs: str


def is_arc(task_name: str) -> bool:
    """Whether "arc-nine-labels" can make a difference to a task."""
    return task_name.startswith("arc-")


def _settings(spec: RunSpec) -> dict[str, Any]:
    return dict(spec.adapter)


def _is_own(spec: RunSpec) -> bool:
    # lm-eval scores in its own way whatever the protocol.
    return spec.evaluator == OWN


def _is_tuned(spec: RunSpec) -> bool:
    return spec.train is not None


QUIRKS: dict[str, Quirk] = {
    quirk.name: quirk
    for quirk in (
        Quirk(
            "loss-on-prompt",
            "the loss covers the prompt, not the answer alone",
            _is_tuned,
            "tuned methods",
        ),
        Quirk(
            "loss-on-pad",
            "the loss covers the padding on the left of shorter rows",
            _is_tuned,
            "tuned methods",
        ),
        Quirk(
            "eval-dropout",
            "the adapter's dropout stays active while answers are scored",
            lambda spec: _settings(spec).get("lora_dropout", 0.0) > 0 and _is_own(spec),
            "adapters with dropout, scored by our own evaluator",
        ),
        Quirk(
            "frozen-dora-magnitude",
            "DoRA's magnitudes are not trained, and set anew when the adapter is loaded, so that "
            "what is scored is LoRA",
            lambda spec: spec.method in ("dora", "mixdora"),
            "DoRA and MixDoRA",
        ),
        Quirk(
            "arc-nine-labels",
            "ARC's answer is sought among nine labels, 1-4 and A-E, whatever the row offers",
            lambda spec: (
                spec.scoring == "label" and any(map(is_arc, spec.eval_tasks)) and _is_own(spec)
            ),
            "ARC, by label, scored by our own evaluator",
        ),
        Quirk(
            "pad-side",
            "rows are padded on the left in training, which moves their positions, and on the "
            "right in scoring, which does not",
            _is_tuned,
            "tuned methods",
        ),
        Quirk(
            "truncate-answer",
            "a training row longer than the cutoff loses its end, which is the answer",
            _is_tuned,
            "tuned methods",
        ),
        Quirk(
            "aux-over-pad",
            "the load-balancing loss counts padding (an old version)",
            lambda spec: _settings(spec).get("router_aux_loss_coef", 0.0) > 0,
            "mixtures with a load-balancing loss",
        ),
    )
}


def chosen_quirks(protocol: str, names: Collection[str]) -> tuple[str, ...]:
    """The quirks of a protocol together with those named, in the order of `QUIRKS`.

    Raises:
        ValueError: The protocol or a quirk is unknown; the message suggests near names.
    """
    wanted = {choose("quirk", name, QUIRKS) for name in names}
    if PROTOCOLS[choose("protocol", protocol, PROTOCOLS)]:
        wanted |= set(QUIRKS)
    return tuple(name for name in QUIRKS if name in wanted)


def concerning(spec: RunSpec, names: Collection[str]) -> tuple[str, ...]:
    """The named quirks that can make a difference to a cell."""
    return tuple(name for name in QUIRKS if name in names and QUIRKS[name].concerns(spec))
