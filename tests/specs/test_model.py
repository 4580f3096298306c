import pytest

from flexgen_helm.errors import UnsupportedModelError
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.model import ModelSpec

OPT_30B = ModelSpec(
    num_layers=48,
    hidden_size=7168,
    num_heads=56,
    ffn_size=28672,
    vocab_size=50272,
    max_positions=2048,
    embedding_size=7168,
)
OPT_CONFIG = {
    "model_type": "opt",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "ffn_dim": 16,
    "vocab_size": 10,
    "max_position_embeddings": 32,
}


def test_layer_weight_bytes_are_the_papers():
    # Paper, section 4.3: a layer's weights take 8 h1^2 + 4 h1 h2 bytes in float16.
    h1, h2 = 7168, 28672
    expected = 48 * (8 * h1**2 + 4 * h1 * h2)
    assert OPT_30B.linear_weight_bytes(Compression(), dtype_bytes=2) == expected


def test_cache_bytes_are_the_papers():
    # Paper, section 4.3: prefill writes 4 (s + 1) h1 bytes per sequence and layer in float16.
    s, h1 = 512, 7168
    assert (
        OPT_30B.cache_bytes(Compression(), num_tokens=s + 1, dtype_bytes=2) == 48 * 4 * (s + 1) * h1
    )


def test_four_bits_take_nine_thirty_seconds_of_sixteen():
    # 64 codes of 4 bits and 4 bytes of scale and zero: 36 bytes where float16 takes 128.
    compressed = Compression(weight_bits=4, cache_bits=4)
    plain = OPT_30B.linear_weight_bytes(Compression(), dtype_bytes=2)
    assert OPT_30B.linear_weight_bytes(compressed, dtype_bytes=2) / plain == 36 / 128
    plain = OPT_30B.cache_bytes(Compression(), num_tokens=7, dtype_bytes=2)
    assert OPT_30B.cache_bytes(compressed, num_tokens=7, dtype_bytes=2) / plain == 36 / 128


def test_30b_has_30_billion_parameters():
    assert OPT_30B.num_parameters == pytest.approx(30e9, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type='llama' in config.json is not supported, only opt"),
        (
            {"activation_function": "silu"},
            "activation_function='silu' in config.json is not supported",
        ),
        ({"num_attention_heads": 3}, "hidden_size=8 is not a multiple of num_attention_heads=3"),
    ],
)
def test_other_architectures_are_refused(changes, message):
    with pytest.raises(UnsupportedModelError, match=message):
        ModelSpec.from_config(OPT_CONFIG | changes)


@pytest.mark.parametrize("value", [None, 0, "8", 8.0, True])
@pytest.mark.parametrize("field", list(OPT_CONFIG)[1:])
def test_a_size_that_is_missing_or_none_is_named(field, value):
    with pytest.raises(
        UnsupportedModelError, match=f"{field}={value!r} in config.json is not possible, .* fetch"
    ):
        ModelSpec.from_config(OPT_CONFIG | {field: value})
    without = {name: size for name, size in OPT_CONFIG.items() if name != field}
    with pytest.raises(UnsupportedModelError, match=f"{field}=None in config.json"):
        ModelSpec.from_config(without)


def test_several_end_tokens():
    assert ModelSpec.from_config(OPT_CONFIG | {"eos_token_id": [2, 5]}).eos_token_ids == (2, 5)
    assert ModelSpec.from_config(OPT_CONFIG | {"eos_token_id": None}).eos_token_ids == ()
