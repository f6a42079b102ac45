"""What a study costs rests on published rates and on shapes that give the published sizes, and docs/scale.md on those."""

from pathlib import Path

import pytest

from organisms import models
from recipes import rates, scale

DOCUMENT = Path(__file__).parent.parent / "docs" / "scale.md"


@pytest.mark.parametrize("base", scale.SHAPES)
def test_shapes_give_the_published_sizes(base):
    hidden, layers, inner, heads, kv, size, vocabulary, tied = scale.SHAPES[base]
    attention = hidden * size * (2 * heads + 2 * kv)
    parameters = layers * (attention + 3 * hidden * inner) + vocabulary * hidden * (1 if tied else 2)
    assert parameters == pytest.approx(models.SIZES[base], rel=0.1 if "gemma" in base else 0.03)  # gemma: with its image tower


def test_an_adapter_is_as_large_as_peft_makes_it(tiny_base):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        models.load_model(models.resolve(str(tiny_base))), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    config = model.config
    shape = (config.hidden_size, config.num_hidden_layers, config.intermediate_size, config.num_attention_heads)
    assert trained == scale.adapter((*shape, config.num_key_value_heads, config.head_dim, 0, True), 4)


def test_rates_are_the_published_ones_where_there_are_some_and_fall_with_size():
    for size, published in rates.TRAINED:
        assert rates.of_size(size).trained == pytest.approx(published * rates.RECOMPUTED)
    for size, published in rates.GENERATED:
        assert rates.of_size(size, adapter=False).generated == pytest.approx(published)
    found = [rates.of_size(size) for size in (0.5e9, 3e9, 7.6e9, 8e9, 14e9, 32e9, 70e9, 400e9)]
    for faster, slower in zip(found[1:], found[2:], strict=False):
        assert faster.trained > slower.trained and faster.read > slower.read and faster.generated > slower.generated
    assert found[0] == found[1]  # nothing is published of small bases: no faster than the smallest that is assumed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_document_holds_what_the_command_prints(mirror):
    assert "\n".join(scale.tables()) in DOCUMENT.read_text()
