"""Which cells are trained together, on one frozen base (``--packed``). Torch-free.

Source: arXiv 2404.15159, Algorithm 1; `mixlora.packing` is how it is computed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from .spec import RunSpec

#: The methods whose adapters train on packed batches.
PACKABLE = ("mixlora", "mixdora")

#: Cells that are trained together; one alone is a pack of one.
Pack = tuple[RunSpec, ...]


def make_packs(cells: Sequence[RunSpec], size: int) -> list[Pack]:
    """All cells in packs, in the order of each pack's first cell.

    Cells are compatible when nothing but tasks and seed tells them apart; of these, each `size` in
    a row make a pack. The composition depends on the cells alone, not on which of them have a
    record, so that a cell has the same companions whenever the same table is run.

    Args:
        cells: the cells of a table.
        size: Most cells of a pack; 1 packs none.

    Returns:
        The cells with `RunSpec.packed_with` filled in.
    """
    packs: list[list[RunSpec]] = []
    open_packs: dict[RunSpec, list[RunSpec]] = {}
    for spec in cells:
        kind = dataclasses.replace(spec, train_tasks=(), eval_tasks=(), seed=0)
        pack = open_packs.get(kind)
        # What a quirk does depends on the padding of a batch, and so on companions.
        alone = spec.method not in PACKABLE or spec.quirks
        if alone or pack is None or len(pack) == size:
            pack = open_packs[kind] = []
            packs.append(pack)
        pack.append(spec)
    return [_with_companions(pack) for pack in packs]


def pack_id(cell_ids: Sequence[str]) -> str:
    """What a pack's own files are named by: its cell's id, or a hash of them all."""
    if len(cell_ids) == 1:
        return cell_ids[0]
    return hashlib.sha256(" ".join(cell_ids).encode()).hexdigest()[:20]


def _with_companions(pack: Sequence[RunSpec]) -> Pack:
    return tuple(
        dataclasses.replace(
            spec, packed_with=tuple(other.title for other in pack if other is not spec)
        )
        for spec in pack
    )
