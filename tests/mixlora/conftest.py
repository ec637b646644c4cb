"""Shared by the tests of `mixlora`: both computations of the fused forward's middle step."""

from __future__ import annotations

import pytest

import mixlora.by_expert
import mixlora.fused


@pytest.fixture(params=["by expert", "by block", "masked"])
def middle_step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both computations of the fused forward at every size, and blocks of two rows (one, where an
    input projection has the width of two); DoRA has the masked one only.
    """
    fewest = 10**9 if request.param == "masked" else 0
    monkeypatch.setattr(mixlora.fused, "MIN_PAIRS_PER_EXPERT", fewest)
    if request.param == "by block":
        monkeypatch.setattr(mixlora.by_expert, "MAX_BLOCK", 2 * 29)
    return request.param
