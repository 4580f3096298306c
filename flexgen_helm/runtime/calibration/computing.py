"""Rates of computing, and of copying to the device and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle

import torch
from torch import Tensor

from flexgen_helm.model.attention import attend, attend_one
from flexgen_helm.model.cache_format import CacheFormat
from flexgen_helm.model.linear import laid_out, linear
from flexgen_helm.offload.weights import Decompressor
from flexgen_helm.quant import kernels, prepacked
from flexgen_helm.quant.prepacked import StoredTensor
from flexgen_helm.quant.quantize import quantize
from flexgen_helm.quant.tensor import QuantizedTensor
from flexgen_helm.runtime.calibration.shapes import (
    CACHED,
    FFN,
    GPU_ROWS,
    HEAD,
    HEADS,
    SEQUENCES,
    WIDTH,
    small_config,
)
from flexgen_helm.runtime.calibration.timing import Stopwatch, left_s
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.hardware import Curve, Surface
from flexgen_helm.specs.model import ModelSpec

ROWS = (1, 4, 16, 64, 256, 2048)
PACKED_ROWS = (1, 4, 16, 64, 256)
MATRICES = ((768, 3072), (2048, 8192), (4096, 16384))
"""Inputs and outputs, of an MLP's width in OPT-125M, 1.3B and 6.7B."""

IN_TURN_BYTES = 256 << 20
"""Matrices that are used in turn take so much, so that none is in a cache when it comes again."""

BITS, GROUP_SIZE = 4, 64


class Computing:
    """What a device can do in a dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.stopwatch = Stopwatch(device)

    @property
    def unified(self) -> bool:
        """Whether device and host are one memory."""
        return self.device.type == "cpu"

    def products(self) -> Surface:
        """By numbers of the matrix and by rows, in FLOP/s."""
        return self._products(ROWS, self._in_turn)

    def packed_products(self) -> Surface | None:
        """The same with 4-bit weights as they are stored; `None` where nothing multiplies so."""
        if not (self.unified and prepacked.reads(BITS, GROUP_SIZE, self.dtype)):
            return None
        return self._products(PACKED_ROWS, self._in_turn_packed)

    def _products(
        self,
        all_rows: Sequence[int],
        matrices_of: Callable[[int, int], Iterator[StoredTensor]],
    ) -> Surface:
        calls = []
        for inputs, outputs in MATRICES:
            matrices = matrices_of(inputs, outputs)
            calls += [partial(_product, self._random(rows, inputs), matrices) for rows in all_rows]
        seconds = iter(self.stopwatch.times(calls))
        curves = []
        for inputs, outputs in MATRICES:
            flop = [(float(rows), 2 * rows * inputs * outputs) for rows in all_rows]
            points = tuple((rows, count / next(seconds)) for rows, count in flop)
            curves.append((float(inputs * outputs), Curve(points)))
        return Surface(tuple(curves))

    def decode_product(self) -> Callable[[], Tensor]:
        """Return a product such as decode has."""
        return partial(_product, self._random(SEQUENCES, WIDTH), self._in_turn(WIDTH, FFN))

    def prefill_attention(self) -> float:
        """Causal, in FLOP/s of what the mask leaves."""
        num_chains = 4
        q, k, v = (self._random(num_chains * HEADS, CACHED, HEAD) for _ in range(3))
        seconds = self.stopwatch.time(lambda: attend(q, k, v, causal=True))
        return 4 * num_chains * CACHED * (CACHED + 1) / 2 * WIDTH / seconds

    def decode_attention(self, device: torch.device) -> float:
        """In bytes of keys and values a second."""
        shape = SEQUENCES, HEADS, CACHED, HEAD
        keys, values = (torch.randn(shape, device=device).to(self.dtype) for _ in range(2))
        q, k, v = (
            torch.randn(SEQUENCES, HEADS, HEAD, device=device).to(self.dtype) for _ in range(3)
        )
        mask = torch.zeros(SEQUENCES, CACHED, dtype=torch.bool, device=device)
        seconds = self.stopwatch.time(lambda: attend_one(q, keys, values, mask, k, v))
        return 2 * keys.numel() * keys.element_size() / seconds

    def dequantized_weights(self) -> Curve:
        """By numbers of a layer's largest matrix, in numbers a second.

        What a layer takes longer whose matrices are dequantized before they are multiplied with:
        they are not in the order in which they are read fastest then, nor in a cache.
        """
        points = []
        for inputs, outputs in MATRICES:
            shapes = (
                (3 * inputs, inputs), (inputs, inputs), (outputs, inputs), (inputs, outputs)
            )  # fmt: skip
            numbers = sum(rows * row_len for rows, row_len in shapes)
            hidden = [self._random(SEQUENCES, row_len) for _, row_len in shapes]
            num_layers = max(2, -(-IN_TURN_BYTES // (4 * numbers * BITS // 8)))
            plain = cycle([laid_out(self._random(*shape), self.dtype) for shape in shapes])
            layer = [self._quantized(*shape) for shape in shapes]
            # Layers in turn, dequantized into the same memory as the engine does it.
            decompressor = Decompressor(self.dtype)
            matrices = cycle(
                [
                    (str(index), laid_out(matrix.map(torch.clone), self.dtype), rows)
                    for _ in range(num_layers)
                    for index, (matrix, rows) in enumerate(zip(layer, hidden, strict=True))
                ]
            )
            seconds = self.stopwatch.time_longer(
                lambda: [
                    _multiply_decompressed(decompressor, *next(matrices))  # noqa: B023
                    for _ in shapes  # noqa: B023
                ],
                lambda: [linear(rows, next(plain)) for rows in hidden],  # noqa: B023
            )
            points.append((float(inputs * outputs), numbers / seconds))
        return Curve(tuple(points))

    def dequantized_cache(self) -> float:
        """In numbers a second: what attention takes longer over compressed keys and values."""
        compression = Compression(cache_bits=BITS, group_size=GROUP_SIZE)
        cache_format = CacheFormat(
            spec=ModelSpec.from_config(small_config()),
            compression=compression,
            dtype=self.dtype,
            device=self.device,
        )
        keys, values = (
            quantize(self._random(SEQUENCES, CACHED, WIDTH), bits=BITS, group_size=GROUP_SIZE)
            for _ in range(2)
        )
        numbers = 2 * SEQUENCES * CACHED * WIDTH
        if cache_format.has_kernel:
            queries = self._random(SEQUENCES, HEADS, HEAD)
            ends = torch.full((SEQUENCES,), CACHED, device=self.device)
            compressed_s = self.stopwatch.time(lambda: kernels.attend(queries, keys, values, ends))
            plain_s = numbers * self.dtype.itemsize / self.decode_attention(self.device)
            seconds = left_s(compressed_s, plain_s)
        else:
            seconds = self.stopwatch.time(lambda: cache_format.both_by_head(keys, values))
        return numbers / seconds

    def quantized_cache(self) -> float:
        """In numbers a second, of as many rows as a micro-batch in prefill has."""
        rows = self._random(CACHED if self.unified else GPU_ROWS, WIDTH)
        return rows.numel() / self.stopwatch.time(
            lambda: quantize(rows, bits=BITS, group_size=GROUP_SIZE)
        )

    def copied(self, *, up: bool) -> float:
        """Between pinned memory and the device, in bytes a second."""
        on_host = torch.empty(64 << 20, dtype=torch.uint8, pin_memory=True)
        on_device = torch.empty_like(on_host, device=self.device)
        to, source = (on_device, on_host) if up else (on_host, on_device)
        return len(on_host) / self.stopwatch.time(lambda: to.copy_(source, non_blocking=True))

    def _in_turn(self, inputs: int, outputs: int) -> Iterator[StoredTensor]:
        """Matrices without end, none of which is in a cache when it comes again."""
        count = -(-IN_TURN_BYTES // (inputs * outputs * self.dtype.itemsize))
        return cycle([laid_out(self._random(outputs, inputs), self.dtype) for _ in range(count)])

    def _in_turn_packed(self, inputs: int, outputs: int) -> Iterator[StoredTensor]:
        """Likewise, of 4 bits; the same codes in other memory."""
        count = -(-IN_TURN_BYTES // (inputs * outputs * BITS // 8))
        weight = self._quantized(outputs, inputs)
        return cycle([laid_out(weight.map(torch.clone), self.dtype) for _ in range(count)])

    def _quantized(self, *shape: int) -> QuantizedTensor:
        return quantize(self._random(*shape), bits=BITS, group_size=GROUP_SIZE)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)


def _product(hidden: Tensor, matrices: Iterator[StoredTensor]) -> Tensor:
    return linear(hidden, next(matrices))


def _multiply_decompressed(
    decompressor: Decompressor, name: str, matrix: StoredTensor, rows: Tensor
) -> Tensor:
    return linear(rows, decompressor.decompress({name: matrix})[name])
