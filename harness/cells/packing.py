"""Which cells are trained together on one frozen base (``--packed``). Loads no torch.

Source: arXiv 2404.15159, Algorithm 1; `mixlora.packing` computes it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from .spec import RunSpec

#: The methods whose adapters train on packed batches.
PACKABLE = ("mixlora", "mixdora")

#: Cells that are trained together; a cell that is trained alone is a pack of one.
Pack = tuple[RunSpec, ...]


def make_packs(cells: Sequence[RunSpec], size: int) -> list[Pack]:
    """Divide cells into packs.

    Cells can be packed together if they differ in tasks and seed only. Each `size` of such cells,
    in the order of the table, make a pack. This depends on the cells alone and not on which of them
    have a record, so that a cell has the same companions whenever the same table is run.

    Args:
        cells: the cells of a table.
        size: the greatest number of cells in a pack; 1 packs none.

    Returns:
        The packs, in the order of their first cells, with `RunSpec.packed_with` filled in.
    """
    packs: list[list[RunSpec]] = []
    open_packs: dict[RunSpec, list[RunSpec]] = {}
    for spec in cells:
        kind = dataclasses.replace(spec, train_tasks=(), eval_tasks=(), seed=0)
        pack = open_packs.get(kind)
        # What a quirk does depends on the padding of a batch, and so on the companions.
        alone = spec.method not in PACKABLE or spec.quirks
        if alone or pack is None or len(pack) == size:
            pack = open_packs[kind] = []
            packs.append(pack)
        pack.append(spec)
    return [_with_companions(pack) for pack in packs]


def pack_id(cell_ids: Sequence[str]) -> str:
    """The name of a pack's own files: the id of its only cell, or a hash of the ids of all."""
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
