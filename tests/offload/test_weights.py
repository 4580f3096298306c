"""Weights by part, as they are computed with."""

import torch

from flexgen_helm.offload.weights import Decompressor, ResidentWeights, layer_part
from flexgen_helm.quant.quantize import dequantize, quantize


def matrix(seed):
    values = torch.randn(8, 100, generator=torch.Generator().manual_seed(seed))
    return quantize(values, bits=4, group_size=64)


def test_all_layers_are_dequantized_into_the_same_memory():
    layers = {layer_part(i): {"fc1": matrix(i), "fc1.bias": torch.ones(8)} for i in range(2)}
    weights = ResidentWeights(layers, torch.bfloat16)
    memory = set()
    for name, layer in layers.items():
        part = weights.fetch(name)
        assert torch.equal(part["fc1"], dequantize(layer["fc1"], torch.bfloat16))
        assert part["fc1.bias"] is layer["fc1.bias"]
        memory.add(weights._decompressor._buffers["fc1"].data_ptr())
    assert len(memory) == 1


def test_a_matrix_of_another_size_gets_other_memory():
    decompressor = Decompressor(torch.float32)
    for rows in (8, 3):
        quantized = matrix(0).map(lambda x, rows=rows: x[:rows])
        part = decompressor.decompress({"fc1": quantized})
        assert torch.equal(part["fc1"], dequantize(quantized, torch.float32))
