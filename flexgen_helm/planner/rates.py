"""How long something takes at a machine's rates, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from flexgen_helm.planner.linear import Linear, placed_on
from flexgen_helm.planner.setup import Setup
from flexgen_helm.specs.chunks import HEAD_ROWS
from flexgen_helm.specs.compression import processors_read
from flexgen_helm.specs.hardware import Hardware, Surface
from flexgen_helm.specs.placement import Tier

OFF_DEVICE = (Tier.HOST, Tier.DISK)


@dataclass(frozen=True)
class Rates:
    """Those of a machine with a model; what is computed is that of all its layers."""

    setup: Setup
    hardware: Hardware

    def products(self, tokens: float, rows: float) -> Linear:
        """With all weights, of some tokens, in products of so many rows."""
        return Linear(self._products_s(tokens, rows, self.hardware.product_flop_per_s))

    def with_weights(
        self, tokens: float, rows: float, *, times: int, at_once: float
    ) -> dict[str, Linear]:
        """Products, and what is dequantized for them.

        Args:
            tokens: in all.
            rows: of a product.
            times: weights are dequantized, if they are.
            at_once: rows for which they would be: those of a pass.
        """
        compression, packed = self.setup.compression, self.hardware.packed_flop_per_s
        products, dequantized = self.products(tokens, rows), self.dequantized(times)
        reads = processors_read(compression.weight_bits, compression.group_size)
        if packed is not None and reads and at_once <= packed.most_rows:
            on_disk = placed_on("weights", Tier.DISK)
            in_memory = placed_on("weights", Tier.DEVICE, Tier.HOST)
            packed_s = self._products_s(tokens, rows, packed)
            products = on_disk * products.constant + in_memory * packed_s
            dequantized = on_disk * dequantized.constant
        return {"products": products, "dequantized weights": dequantized}

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

    def dequantized(self, times: int) -> Linear:
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
