"""Shared by the tests of `mixlora`: how a block is told which implementation computes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mixlora.experts import grouped
from mixlora.layer import MixLoraFfn


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[MixLoraFfn, str], None]:
    """``use(block, name)``: the block is computed by an implementation, named as in models.py.

    "grouped in blocks" is "grouped" with blocks of two rows at most, or of one row where an input
    projection is twice as wide.
    """

    def switch(block: MixLoraFfn, name: str) -> None:
        in_blocks = name == "grouped in blocks"
        monkeypatch.setattr(grouped, "MAX_BLOCK", 2 * 29 if in_blocks else 2**19)
        block.configs["default"].experts_implementation = name.removesuffix(" in blocks")

    return switch
