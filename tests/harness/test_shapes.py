"""Tests of the architectures: counts against the published ones, and against the real config."""

from __future__ import annotations

import pytest

from harness.models.shapes import SHAPES, build_config, build_meta

# As published with the checkpoints (the "total parameters" of their safetensors files).
PUBLISHED_PARAMETERS = {
    "gemma-2b": 2_506_172_416,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "llama2-13b": 13_015_864_320,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_count_is_the_published_one(name: str) -> None:
    model = build_meta(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED_PARAMETERS[name]
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_one_layer_fewer_is_one_layer_smaller(name: str) -> None:
    # A decoder layer by hand: q and o, k and v, the three projections of the FFN, two norms.
    values = SHAPES[name].values
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    head_dim = values.get("head_dim", hidden // heads)
    layer = 2 * hidden * heads * head_dim + 2 * hidden * values["num_key_value_heads"] * head_dim
    layer += 3 * hidden * values["intermediate_size"] + 2 * hidden

    one, two = (
        sum(parameter.numel() for parameter in build_meta(name, num_layers).parameters())
        for num_layers in (1, 2)
    )
    assert two - one == layer


def test_gemma_nominal_size_counts_the_tied_embedding_twice() -> None:
    embedding = 256_000 * 2048
    counted_twice = PUBLISHED_PARAMETERS["gemma-2b"] + embedding
    assert round(counted_twice / 1e9, 2) == SHAPES["gemma-2b"].nominal_parameters / 1e9


def test_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(ValueError, match=r"'llama2-7'.*llama2-7b"):
        build_config("llama2-7")


@pytest.mark.parametrize("num_layers", [0, -1, 33])
def test_impossible_number_of_layers_is_refused(num_layers: int) -> None:
    with pytest.raises(ValueError, match=rf"num_layers={num_layers}: llama2-7b has 1 to 32"):
        build_config("llama2-7b", num_layers)
