import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.quant.packing import pack, unpack
from flexgen_helm.specs.compression import BITS, GROUP_SIZES


@given(
    bits=st.sampled_from(BITS),
    group_size=st.sampled_from(GROUP_SIZES),
    rows=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_unpack_undoes_pack(bits, group_size, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, 3, group_size), generator=generator, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (rows, 3, group_size * bits // 8)
    assert torch.equal(unpack(packed, bits, torch.empty_like(codes)), codes)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        # A ramp of 8 codes. 4 bits: byte i holds code i (low) and code i + 4 (high).
        (4, [0x40, 0x51, 0x62, 0x73]),
        # 3 bits: the two low bits of codes 0..7 in 2 bytes, then the 8 high bits (0,0,0,0,1,1,1,1).
        (3, [0b10_00_10_00, 0b11_01_11_01, 0b11110000]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_layout_by_hand(bits, expected):
    assert pack(torch.arange(8, dtype=torch.uint8), bits).tolist() == expected
