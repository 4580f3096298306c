import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.errors import DeploymentError, InvalidCompressionError
from flexgen_helm.specs.compression import BITS, GROUP_SIZES, Compression, quantized_bytes
from flexgen_helm.specs.deployment import DTYPE_SUFFIXES, DeploymentSpec

compressions = st.builds(
    Compression,
    weight_bits=st.sampled_from([None, *BITS]),
    cache_bits=st.sampled_from([None, *BITS]),
    group_size=st.sampled_from(GROUP_SIZES),
    attention_percent=st.sampled_from([None, None, 1, 10, 99]),
)
checkpoints = st.sampled_from(["opt-30b", "facebook/opt-125m", "/data/w4/my-opt", "x-w4-model"])


@given(compressions)
def test_parse_undoes_label(compression):
    parsed = Compression.parse(compression.label)
    assert parsed == compression or not compression.quantized
    assert parsed.label == compression.label


@given(checkpoints, compressions, st.sampled_from(list(DTYPE_SUFFIXES)))
def test_parse_undoes_deployment_name(checkpoint, compression, dtype):
    name = DeploymentSpec(checkpoint=checkpoint, compression=compression, dtype=dtype).name
    parsed = DeploymentSpec.parse(name)
    assert (parsed.checkpoint, parsed.compression.label, parsed.dtype, parsed.name) == (
        checkpoint,
        compression.label,
        dtype,
        name,
    )


@pytest.mark.parametrize(
    ("checkpoint", "compression", "dtype", "read"),
    [
        ("/data/my-opt-w4", Compression(), "float32", "/data/my-opt"),
        ("org/opt-13b-fp16", Compression(), "auto", "org/opt-13b"),
        ("my-opt-kv4", Compression(attention_percent=10), "auto", "my-opt"),
        ("my-opt-w5", Compression(), "auto", "my-opt"),
    ],
)
def test_a_checkpoint_is_not_taken_for_another_with_a_setting(checkpoint, compression, dtype, read):
    spec = DeploymentSpec(checkpoint=checkpoint, compression=compression, dtype=dtype)
    with pytest.raises(
        DeploymentError,
        match=f"means checkpoint '{read}' with a setting, not '{checkpoint}': name a directory, or",
    ):
        _ = spec.name
    named = DeploymentSpec(checkpoint=checkpoint, compression=Compression(weight_bits=8))
    assert DeploymentSpec.parse(named.name) == named


@pytest.mark.parametrize(
    "label", ["", "4", "w4kv4", "kv4-w4", "g64", "w4-x", "-g32-top10", "top10-w4", "-top10"]
)
def test_unknown_labels_are_refused(label):
    with pytest.raises(
        InvalidCompressionError, match=f"compression '{label}' is not understood: write"
    ):
        Compression.parse(label)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_bits": 5}, r"weight_bits=5 is not supported: use one of \(2, 3, 4, 8\)"),
        ({"cache_bits": 16}, r"cache_bits=16 is not supported: use one of \(2, 3, 4, 8\)"),
        ({"attention_percent": 100}, r"attention_percent=100 is out of range: use 1 to 99"),
        ({"group_size": 48}, r"group_size=48 is not supported: use one of \(32, 64, 128\)"),
    ],
)
def test_unsupported_values_are_refused(fields, message):
    with pytest.raises(InvalidCompressionError, match=message):
        Compression(**fields)


def test_foreign_deployment_is_refused():
    with pytest.raises(
        DeploymentError, match="'huggingface/opt-125m' is not one of ours: write flexgen/"
    ):
        DeploymentSpec.parse("huggingface/opt-125m")


def test_quantized_bytes_by_hand():
    # 100 numbers are two groups of 64: 2 * (64 codes of half a byte + scale and zero of 2 bytes).
    assert quantized_bytes(num_rows=3, row_len=100, bits=4, group_size=64) == 3 * 2 * (32 + 4)
