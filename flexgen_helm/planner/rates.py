"""How long something takes at a machine's rates, in seconds."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from flexgen_helm.planner.linear import Linear, placed_on
from flexgen_helm.planner.setup import Setup
from flexgen_helm.specs.chunks import HEAD_ROWS
from flexgen_helm.specs.compression import processors_read
from flexgen_helm.specs.hardware import Hardware, Surface
from flexgen_helm.specs.placement import Tier

OFF_DEVICE = (Tier.HOST, Tier.DISK)

MOST_PACKED_ROWS = 1024
"""Of a pass: with more it is not asked whether weights should stay as they are stored."""


@dataclass(frozen=True)
class Rates:
    """Those of a machine with a model; what is computed is that of all its layers."""

    setup: Setup
    hardware: Hardware

    def products(self, tokens: float, rows: float) -> Linear:
        """With all weights, of some tokens, in products of so many rows."""
        return Linear(self._products_s(tokens, rows, self.hardware.product_flop_per_s))

    def with_weights(self, tokens: float, rows: float, *, times: float) -> dict[str, Linear]:
        """Products, and what is dequantized for them where that takes less than it saves.

        Args:
            tokens: in all.
            rows: of a product.
            times: weights are dequantized, if they are.
        """
        products, dequantized = self.products(tokens, rows), self.dequantized(times)
        packed_s = self._packed_s(tokens, rows)
        if packed_s is not None and packed_s <= products.constant + dequantized.constant:
            on_disk = placed_on("weights", Tier.DISK)
            in_memory = placed_on("weights", Tier.DEVICE, Tier.HOST)
            products = on_disk * products.constant + in_memory * packed_s
            dequantized = on_disk * dequantized.constant
        return {"products": products, "dequantized weights": dequantized}

    def few_rows(self, micro_batch_size: int) -> int | None:
        """Rows of a pass up to which weights that are in memory should stay as they are stored.

        `None` where that was not measured.
        """
        if self._packed_s(1, 1) is None:
            return None

        def dequantizes(rows: int) -> bool:
            found = self.with_weights(rows, min(rows, micro_batch_size), times=1)
            return found["dequantized weights"].constant > 0

        return bisect_left(range(1, MOST_PACKED_ROWS + 1), True, key=dequantizes)

    def _packed_s(self, tokens: float, rows: float) -> float | None:
        """Products with weights as they are stored; `None` where there are none, or unknown."""
        compression, packed = self.setup.compression, self.hardware.packed_flop_per_s
        reads = processors_read(compression.weight_bits, compression.group_size)
        # A profile of another dtype may stand in for one that was not measured.
        if packed is None or not reads or self.hardware.dtype != "bfloat16":
            return None
        return self._products_s(tokens, rows, packed)

    def _products_s(self, tokens: float, rows: float, rate: Surface) -> float:
        spec = self.setup.spec
        numbers = [out * in_ for out, in_ in spec.matrix_shapes.values()]
        layer_s = sum(2 * tokens * size / rate.at(size, rows) for size in numbers)
        return layer_s * spec.num_layers

    def attention(self, pairs: float) -> Linear:
        """Two products for each pair of a query and a position it attends to."""
        spec = self.setup.spec
        flop = 4 * pairs * spec.hidden_size * spec.num_layers
        return Linear(flop / self.hardware.attention_flop_per_s)

    def own_attention(self, attended: Linear, *, on_host: bool) -> Linear:
        """One query for each cached token, whose keys and values are read from memory."""
        token_bytes = self.setup.cache_numbers(1) * self.setup.dtype_bytes
        hardware = self.hardware
        rate = (
            hardware.host_attention_bytes_per_s
            if on_host
            else hardware.device_attention_bytes_per_s
        )
        return attended * (token_bytes / rate)

    def norms_and_copies(self, tokens: float) -> Linear:
        """What is done to hidden states beside products."""
        return Linear(self.setup.hidden_bytes(tokens) / self.hardware.hidden_bytes_per_s)

    def dequantized(self, times: float) -> Linear:
        """All weights, so many times."""
        if self.setup.compression.weight_bits is None:
            return Linear()
        spec, rate = self.setup.spec, self.hardware.dequantized_weights_per_s
        numbers = [out * in_ for out, in_ in spec.matrix_shapes.values()]
        layer_s = sum(numbers) / rate.at(max(*numbers, rate.points[0][0]))
        return Linear(times * layer_s * spec.num_layers)

    def dequantized_cache(self, attended: Linear) -> Linear:
        """Keys and values of some cached tokens."""
        if self.setup.compression.cache_bits is None:
            return Linear()
        return attended * (self.setup.cache_numbers(1) / self.hardware.dequantized_cache_per_s)

    def quantized_cache(self, tokens: float) -> Linear:
        """Those of some new ones."""
        if self.setup.compression.cache_bits is None:
            return Linear()
        return Linear(self.setup.cache_numbers(tokens) / self.hardware.quantized_cache_per_s)

    def ordered_cache(self, num_bytes: float) -> Linear:
        """So much of a cache that is on disk, copied by the host."""
        return placed_on("cache", Tier.DISK) * (
            num_bytes / self.hardware.host_attention_bytes_per_s
        )

    def head(self, tokens: float, at_once: float) -> Linear:
        """Logits of some tokens."""
        spec = self.setup.spec
        size = spec.vocab_size * spec.embedding_size
        rows = max(1.0, min(HEAD_ROWS, at_once))
        return Linear(2 * tokens * size / self.hardware.product_flop_per_s.at(size, rows))

    def drawn(self, tokens: float) -> Linear:
        """Tokens, from their logits."""
        return Linear(tokens * self.hardware.token_s)

    def steps(self, micro_batches: int, *, captured: bool = False) -> Linear:
        """What it takes to begin what is computed, in micro-batches of all passes."""
        each_s = self.hardware.step_s
        if captured and self.hardware.captured_step_s is not None:
            each_s = self.hardware.captured_step_s
        return Linear(micro_batches * self.setup.spec.num_layers * each_s)

    def disk_steps(self, micro_batches: int) -> Linear:
        """Likewise with a cache on disk."""
        seconds = micro_batches * self.setup.spec.num_layers * self.hardware.disk_step_s
        return placed_on("cache", Tier.DISK) * seconds

    def link_steps(self, pools: int) -> Linear:
        """What it takes whoever tells a device of its own of what is not on it, pool by pool."""
        seconds = pools * self.setup.spec.num_layers * self.hardware.link_step_s
        return placed_on("cache", *OFF_DEVICE) * seconds

    def copied(
        self, placed: str, num_bytes: float, *, up: bool, tiers: tuple[Tier, ...] = OFF_DEVICE
    ) -> Linear:
        """What is not on the device passes its link, also what is on disk."""
        hardware = self.hardware
        rate = hardware.host_to_device_bytes_per_s if up else hardware.device_to_host_bytes_per_s
        if rate is None:
            return Linear()
        return placed_on(placed, *tiers) * (num_bytes / rate)

    def read(self, placed: str, num_bytes: float) -> Linear:
        """From disk."""
        return placed_on(placed, Tier.DISK) * (num_bytes / self.hardware.disk_read_bytes_per_s)

    def written(self, placed: str, num_bytes: float) -> Linear:
        """To disk."""
        return placed_on(placed, Tier.DISK) * (num_bytes / self.hardware.disk_write_bytes_per_s)
