"""How long a block takes, as sums of named terms, in seconds.

Time is that of the FlexGen paper's cost model (section 4.3, appendix A.3): every pass over the
weights is bound by what takes longest of computing, transfers and the disk. Added to it are what
prompts share, requests of one token, quantization, and a part of the rest that does not overlap.

Shape letters: b sequences, t cached positions, e model width, l layers, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from math import ceil

from flexgen_helm.planner.block_load import OURS, BlockLoad, Execution, Shape
from flexgen_helm.planner.linear import Fractions, Linear, placed_on, total
from flexgen_helm.planner.rates import Rates
from flexgen_helm.planner.setup import Setup
from flexgen_helm.specs.chunks import GROWTH, RUN_LEN, spilled_at_once
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.specs.placement import Tier
from flexgen_helm.specs.workload import RequestLengths

LEAST_LOSS = 1e-2
"""Nothing overlaps for free: of placements that are as fast, the one that moves least is best."""


class Resource(str, Enum):
    """What works at the same time as the others."""

    COMPUTE = "computing"
    TO_DEVICE = "copying to the device"
    TO_HOST = "copying to the host"
    DISK = "the disk"


Terms = Mapping[Resource, Mapping[str, Linear]]
"""Seconds by resource and name."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Prefill, or decode, of all requests of a scenario."""

    scenario: str
    name: str
    terms: Terms
    overlap_loss: float
    """Of what is not the longest, the part that takes time of its own."""

    def seconds(self, fractions: Fractions) -> float:
        """Return how long it takes, with everything in its place."""
        seconds = [total(terms).at(fractions) for terms in self.terms.values()]
        return (1 - self.overlap_loss) * max(seconds) + self.overlap_loss * sum(seconds)


def phases(
    setup: Setup,
    hardware: Hardware,
    lengths: RequestLengths,
    shape: Shape,
    execution: Execution = OURS,
) -> Iterator[Phase]:
    """Yield what some requests take: prefill and, where anything is decoded, decode."""
    load = BlockLoad.of(lengths, shape, execution)
    loss = max(LEAST_LOSS, hardware.contention) if shape.overlap else 1.0
    costs = _Costs(setup, Rates(setup, hardware), lengths, shape, execution, load)
    yield Phase(scenario=lengths.name, name="prefill", terms=costs.prefill(), overlap_loss=loss)
    if load.decode_passes:
        yield Phase(scenario=lengths.name, name="decode", terms=costs.decode(), overlap_loss=loss)


@dataclass(frozen=True)
class _Costs:
    """Terms of all blocks of some requests."""

    setup: Setup
    rates: Rates
    lengths: RequestLengths
    shape: Shape
    execution: Execution
    load: BlockLoad

    def prefill(self) -> Terms:
        passes = self.load.num_blocks * self.load.prefill_passes
        tokens = self.load.num_blocks * self.load.prompt_tokens
        rows = self._prefill_rows()
        micro_batches = ceil(self.load.prompt_tokens / rows) * self.load.num_blocks
        stored = tokens if self._caches else 0.0
        rates, hidden_bytes = self.rates, self.setup.hidden_bytes(tokens)
        weight_bytes = self.setup.weight_bytes * passes
        cache_bytes = stored * self.setup.cached_token_bytes
        return {
            Resource.COMPUTE: {
                **rates.with_weights(
                    tokens * self._prefilled_part(),
                    rows,
                    times=self._times(passes, micro_batches),
                ),
                "attention": self._prefill_attention(),
                "norms and copies": rates.norms_and_copies(tokens),
                "quantized cache": rates.quantized_cache(stored),
                "LM head": rates.head(
                    self.lengths.num_requests + self.lengths.scored_part * tokens,
                    self.load.sequences + self.lengths.scored_part * self.load.prompt_tokens,
                ),
                "steps": rates.steps(micro_batches),
                "drawing": rates.drawn(self.lengths.num_requests),
            },
            Resource.TO_DEVICE: {
                "weights": rates.copied("weights", weight_bytes, up=True),
                "activations": rates.copied("activations", hidden_bytes, up=True),
            },
            Resource.TO_HOST: {
                "cache": rates.copied("cache", cache_bytes, up=False),
                "activations": rates.copied("activations", hidden_bytes, up=False),
            },
            Resource.DISK: {
                "weights read": rates.read("weights", weight_bytes),
                "activations read": rates.read("activations", hidden_bytes),
                "cache written": rates.written("cache", cache_bytes),
                "activations written": rates.written("activations", hidden_bytes),
            },
        }

    def decode(self) -> Terms:
        passes = self.load.num_blocks * self.load.decode_passes
        tokens = self.load.decode_tokens
        rows = self._decode_rows()
        micro_batches = ceil(self.load.decoding / rows) * self.load.passes_with_decode
        rates, hidden_bytes = self.rates, self.setup.hidden_bytes(tokens)
        weight_bytes = self.setup.weight_bytes * passes
        cache_bytes = tokens * self.setup.cached_token_bytes
        read_bytes = tokens * self._mean_own_len * self.setup.cached_token_bytes
        attended = self._attended(tokens)
        on_host = self.shape.attention == "host" and not self.setup.unified
        attention = rates.own_attention(attended, on_host=on_host)
        ordered, disk_steps = self._ordered(tokens), self._disk_steps(micro_batches)
        unified = self.setup.unified  # otherwise threads that read do it, before they copy
        return {
            Resource.COMPUTE: {
                **rates.with_weights(
                    tokens,
                    rows,
                    times=self._times(passes, micro_batches),
                ),
                "attention": attention,
                "shared attention": rates.attention(tokens * self.lengths.shared_len),
                "norms and copies": rates.norms_and_copies(tokens),
                "dequantized cache": rates.dequantized_cache(attended),
                "quantized cache": rates.quantized_cache(tokens),
                "LM head": rates.head(tokens, self.load.decoding),
                "ordered cache": ordered if unified else Linear(),
                "steps": rates.steps(micro_batches, captured=self.shape.captured),
                "steps of the disk": disk_steps if unified else Linear(),
                "steps of the link": Linear() if on_host else self._link_steps(),
                "drawing": rates.drawn(tokens),
            },
            # What the host attends to it cannot copy meanwhile: both are bound by its memory, and
            # the device waits for both (as in the paper's cost model of decode).
            Resource.TO_DEVICE: {
                "weights": rates.copied("weights", weight_bytes, up=True),
                "attention on the host": attention if on_host else Linear(),
                "cache": Linear() if on_host else self._brought(tokens),
                "activations": rates.copied("activations", hidden_bytes, up=True),
            },
            Resource.TO_HOST: {
                "cache": rates.copied("cache", cache_bytes, up=False),
                "activations": rates.copied("activations", hidden_bytes, up=False),
            },
            Resource.DISK: {
                "weights read": rates.read("weights", weight_bytes),
                "cache read": rates.read("cache", read_bytes),
                "activations read": rates.read("activations", hidden_bytes),
                "cache written": rates.written("cache", cache_bytes),
                "ordered cache": Linear() if unified else ordered,
                "steps of the disk": Linear() if unified else disk_steps,
                "activations written": rates.written("activations", hidden_bytes),
            },
        }

    @property
    def _caches(self) -> bool:
        return self.lengths.decodes or self.execution.caches_one_token

    @property
    def _mean_own_len(self) -> float:
        """Tokens of its own that a sequence attends to in decode; the paper's s + n/2."""
        return self.lengths.own_len + self.lengths.new_tokens / 2

    @property
    def _mean_room(self) -> float:
        """Positions behind these that are read, too: room for tokens to come; not on disk."""
        if self.execution.reads_what_there_is:
            return 0
        return min(GROWTH, self.lengths.new_tokens) / 2

    def _attended(self, tokens: float) -> Linear:
        """Cached tokens that some tokens in decode attend to, with the room that is read.

        Kernels end where a sequence does.
        """
        room = placed_on("cache", Tier.DEVICE, Tier.HOST) * (tokens * self._mean_room)
        own = Linear(tokens * self._mean_own_len)
        return own if self.setup.attends_packed(self.shape.attention) else own + room

    def _prefill_rows(self) -> float:
        """Rows of a product in prefill."""
        return min(self.shape.micro_batch_tokens, self.load.prompt_tokens)

    def _decode_rows(self) -> float:
        """Rows of a product in decode; of a cache on disk, those read at once.

        To a device of its own they are brought one after another, and multiplied together.
        """
        most: float = self.shape.micro_batch_size
        if self.shape.cache_on_disk and self.setup.unified:
            most = min(most, self.load.decoding / self._num_pools)
        return max(1.0, min(most, self.load.decoding))

    @property
    def _num_pools(self) -> int:
        """Parts that sequences in decode are divided into where their cache is read from elsewhere.

        Of similar lengths there are as few as possible.
        """
        storage_bytes = self.lengths.final_len * self.setup.cached_token_bytes / self._num_storages
        cache_bytes = round(self.shape.cached_tokens * self.setup.cached_token_bytes)
        limit = cache_bytes if self.shape.cache_limited else None
        layers, linked = self.setup.spec.num_layers, not self.setup.unified
        at_once = spilled_at_once(limit, layers, linked=linked)
        return ceil(self.load.decoding * storage_bytes / at_once)

    @property
    def _num_storages(self) -> int:
        """Keys and values of each layer are stored apart."""
        return 2 * self.setup.spec.num_layers

    def _prefilled_part(self) -> float:
        """Of products in prefill, the part that is computed.

        In the last layer all rows need keys and values, but only the last of each prompt, and those
        that are scored, the rest.
        """
        if self.execution.computes_last_rows:
            return 1.0
        shapes = self.setup.spec.linear_shapes
        size = {name: rows * row_len for name, (rows, row_len) in shapes.items()}
        kept = (size["k_proj"] + size["v_proj"]) / sum(size.values())
        read = self.load.sequences / self.load.prompt_tokens + self.lengths.scored_part
        unread = 1 - min(1.0, read)
        return 1 - (1 - kept) * unread / self.setup.spec.num_layers

    def _prefill_attention(self) -> Linear:
        """Each query attends to what is before it."""
        own, length = self.lengths.own_len, self.lengths.prompt_len
        seen = length if self.execution.attends_to_all else length - own / 2
        return self.rates.attention(self.lengths.num_requests * own * seen)

    def _times(self, passes: int, micro_batches: int) -> int:
        """How often weights are dequantized."""
        return micro_batches if self.execution.dequantizes_each else passes

    def _ordered(self, tokens: float) -> Linear:
        """Last positions of a cache on disk: copied, for every token, until they are a run."""
        if self.execution.stores_in_order:
            return Linear()
        passes = self.load.decode_passes
        runs, rest = divmod(passes - 1, RUN_LEN)  # there are none yet in the first
        copied = runs * RUN_LEN * (RUN_LEN + 1) / 2 + rest * (rest + 1) / 2
        num_bytes = 2 * tokens * copied / passes * self.setup.cached_token_bytes
        return self.rates.ordered_cache(num_bytes)

    def _disk_steps(self, micro_batches: int) -> Linear:
        if self.execution.stores_in_order:
            return Linear()
        return self.rates.disk_steps(micro_batches)

    def _link_steps(self) -> Linear:
        if self.setup.unified:
            return Linear()
        return self.rates.link_steps(self.load.passes_with_decode * self._num_pools)

    def _brought(self, tokens: float) -> Linear:
        """What some tokens in decode attend to and is not on the device, with the room there."""
        brought = tokens * self._brought_part
        read = brought * self._mean_own_len * self.setup.cached_token_bytes
        room = brought * self._mean_room * self.setup.cached_token_bytes
        return self.rates.copied("cache", read, up=True) + self.rates.copied(
            "cache", room, up=True, tiers=(Tier.HOST,)
        )

    @property
    def _brought_part(self) -> float:
        """All keys and, with sparse attention, values that are picked out where they are."""
        compression = self.setup.compression
        if compression.attention_percent is None or compression.cache_bits is not None:
            return 1.0
        return (1 + compression.attention_percent / 100) / 2
