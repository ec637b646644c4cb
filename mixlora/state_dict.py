"""Whether an adapter's weights fit the model that they are loaded into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from .shown import named


def check_fit(source: str, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not exactly the expected ones.

    Args:
        source: Where the weights are from, for the message.
        given: The weights.
        expected: Tensors of the right shapes under the right keys.

    Raises:
        ValueError: A key is missing, unknown or has another shape, or its values are no finite
            real numbers; the message names it.
    """
    missing = expected.keys() - given.keys()
    if missing:
        raise ValueError(f"{source} lacks {_some(missing)}")
    unknown = given.keys() - expected.keys()
    if unknown:
        raise ValueError(f"{source} has keys that the model does not know: {_some(unknown)}")
    for key, tensor in expected.items():
        if given[key].shape != tensor.shape:
            shapes = f"{tuple(given[key].shape)}: expected {tuple(tensor.shape)}"
            raise ValueError(f"{source} has {key} of shape {shapes}")
        if not given[key].is_floating_point():
            raise ValueError(f"{source} has {key} of {given[key].dtype}: expected real numbers")
        # A NaN would spread to every logit, and an adapter that is nowhere finite still "works".
        if not given[key].isfinite().all():
            raise ValueError(f"{source} has NaN or infinity in {key}")


def _some(keys: Iterable[str]) -> str:
    """The first keys, and how many more there are."""
    ordered = sorted(keys)
    more = f" and {len(ordered) - 2} more" if len(ordered) > 2 else ""
    return ", ".join(map(named, ordered[:2])) + more
