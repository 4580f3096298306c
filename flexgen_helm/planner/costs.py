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

from flexgen_helm.planner.linear import Fractions, Linear, placed_on, total
from flexgen_helm.planner.setup import Setup
from flexgen_helm.specs.chunks import GROWTH, HEAD_ROWS, RUN_LEN, spilled_at_once
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.specs.placement import Tier
from flexgen_helm.specs.policy import Policy
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
class Shape:
    """What of a policy is not a placement."""

    micro_batch_size: int
    num_micro_batches: int
    micro_batch_tokens: int
    cached_tokens: int
    """Tokens of a block in the KV cache, at most."""

    attention: str = "device"
    overlap: bool = True
    weights_on_disk: bool = True
    """Whether weights may be there: this takes memory."""

    cache_on_disk: bool = True
    """Likewise of the KV cache."""

    cache_limited: bool = True
    """Whether a policy says how large the KV cache may be: what is read at once depends on it."""

    captured: bool = False
    """Whether passes of decode are captured as CUDA graphs."""

    @classmethod
    def of(cls, setup: Setup, policy: Policy, cached_tokens: int) -> Shape:
        """Return that of a policy, with room for so many tokens in the KV cache."""
        return cls(
            micro_batch_size=policy.micro_batch_size,
            num_micro_batches=policy.num_micro_batches,
            micro_batch_tokens=policy.micro_batch_tokens,
            cached_tokens=cached_tokens,
            attention=policy.attention,
            overlap=policy.overlap,
            weights_on_disk=policy.weights.disk > 0,
            cache_on_disk=policy.cache.disk > 0,
            cache_limited=policy.cache_bytes is not None,
            captured=setup.captures_decode(policy),
        )

    @property
    def rows(self) -> int:
        """Prompt tokens of a pass, at most."""
        return self.micro_batch_tokens * self.num_micro_batches


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What a system does that another does not."""

    attends_to_all: bool = False
    """Whether scores that the causal mask hides are computed, too."""

    dequantizes_each: bool = False
    """Whether each micro-batch dequantizes the weights of a layer, and not each pass."""

    prefills_at_once: bool = False
    """Whether all prompts of a block are computed in one pass."""

    caches_one_token: bool = False
    """Whether keys and values are stored of requests that need only their first token."""

    computes_last_rows: bool = False
    """Whether the last layer computes rows whose result nobody reads."""

    reads_what_there_is: bool = False
    """Whether keys and values are read up to the last, and not with the room for those to come."""

    stores_in_order: bool = False
    """Whether those of new tokens are on disk where they belong; the last are put in order whenever
    they are read otherwise."""


OURS = Execution()
UPSTREAM = Execution(
    attends_to_all=True,
    dequantizes_each=True,
    prefills_at_once=True,
    caches_one_token=True,
    computes_last_rows=True,
    reads_what_there_is=True,
    stores_in_order=True,
)
"""FlexGen 0.1.8; it also pads prompts and shares nothing."""


@dataclass(frozen=True, kw_only=True)
class BlockLoad:
    """What the blocks of some requests have to do, on average."""

    num_blocks: int
    sequences: float
    """Requests of a block."""

    prompt_tokens: float
    """Prompt tokens a block computes."""

    prefill_passes: int
    decode_passes: int

    @property
    def decode_tokens(self) -> float:
        """Tokens of all blocks that are computed in decode."""
        return self.num_blocks * self.decode_passes * self.sequences

    @property
    def passes_with_decode(self) -> int:
        """Passes of all blocks in which anything is in decode.

        Where prompts take several passes, sequences begin and end one pass after another, and those
        of the next block begin as these end.
        """
        if not self.decode_passes:
            return 0
        least, most = sorted((self.prefill_passes, self.decode_passes))
        return self.num_blocks * most + least - 1

    @property
    def decoding(self) -> float:
        """Sequences in decode in such a pass, on average."""
        return self.decode_tokens / max(1, self.passes_with_decode)

    @classmethod
    def of(cls, lengths: RequestLengths, shape: Shape, execution: Execution) -> BlockLoad:
        """Work out how requests are cut into blocks; see `batching.blocks`."""
        keeps = lengths.decodes or execution.caches_one_token
        most = float(lengths.num_requests)
        if keeps:
            cached = lengths.own_len + max(0, lengths.new_tokens - 1)
            most = min(most, shape.micro_batch_size * shape.num_micro_batches)
            most = max(1.0, min(most, shape.cached_tokens / cached))
        num_blocks = ceil(lengths.num_requests / most)
        sequences = lengths.num_requests / num_blocks
        prompt_tokens = sequences * lengths.own_len
        passes = 1 if execution.prefills_at_once else ceil(prompt_tokens / shape.rows)
        return cls(
            num_blocks=num_blocks,
            sequences=sequences,
            prompt_tokens=prompt_tokens,
            prefill_passes=passes,
            decode_passes=max(0, lengths.new_tokens - 1),
        )


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
    costs = _Costs(setup, hardware, lengths, shape, execution, load)
    yield Phase(scenario=lengths.name, name="prefill", terms=costs.prefill(), overlap_loss=loss)
    if load.decode_passes:
        yield Phase(scenario=lengths.name, name="decode", terms=costs.decode(), overlap_loss=loss)


OFF_DEVICE = (Tier.HOST, Tier.DISK)


@dataclass(frozen=True)
class _Costs:
    """Terms of all blocks of some requests."""

    setup: Setup
    hardware: Hardware
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
        return {
            Resource.COMPUTE: {
                "products": self._products(tokens * self._prefilled_part(), rows),
                "attention": self._prefill_attention(),
                "norms and copies": self._norms_and_copies(tokens),
                "dequantized weights": self._dequantized(passes, micro_batches),
                "quantized cache": self._quantized(stored),
                "LM head": self._head(
                    self.lengths.num_requests + self.lengths.scored_part * tokens,
                    self.load.sequences + self.lengths.scored_part * self.load.prompt_tokens,
                ),
                "steps": self._steps(micro_batches),
                "drawing": Linear(self.lengths.num_requests * self.hardware.token_s),
            },
            Resource.TO_DEVICE: {
                "weights": self._copied("weights", self._weight_bytes * passes, up=True),
                "activations": self._copied("activations", self._hidden_bytes(tokens), up=True),
            },
            Resource.TO_HOST: {
                "cache": self._copied("cache", self._stored_bytes(stored), up=False),
                "activations": self._copied("activations", self._hidden_bytes(tokens), up=False),
            },
            Resource.DISK: {
                "weights read": self._read("weights", self._weight_bytes * passes),
                "activations read": self._read("activations", self._hidden_bytes(tokens)),
                "cache written": self._written("cache", self._stored_bytes(stored)),
                "activations written": self._written("activations", self._hidden_bytes(tokens)),
            },
        }

    def decode(self) -> Terms:
        passes = self.load.num_blocks * self.load.decode_passes
        tokens = self.load.decode_tokens
        rows = self._decode_rows()
        micro_batches = ceil(self.load.decoding / rows) * self.load.passes_with_decode
        attended = self._attended(tokens)
        on_host = self.shape.attention == "host" and not self.setup.unified
        attention = self._own_attention(attended, on_host=on_host)
        ordered, disk_steps = self._ordered(tokens), self._disk_steps(micro_batches)
        unified = self.setup.unified  # otherwise threads that read do it, before they copy
        return {
            Resource.COMPUTE: {
                "products": self._products(tokens, rows),
                "attention": attention,
                "shared attention": self._shared_attention(tokens),
                "norms and copies": self._norms_and_copies(tokens),
                "dequantized weights": self._dequantized(passes, micro_batches),
                "dequantized cache": self._dequantized_cache(attended),
                "quantized cache": self._quantized(tokens),
                "LM head": self._head(tokens, self.load.decoding),
                "ordered cache": ordered if unified else Linear(),
                "steps": self._steps(micro_batches, captured=self.shape.captured),
                "steps of the disk": disk_steps if unified else Linear(),
                "steps of the link": Linear() if on_host else self._link_steps(),
                "drawing": Linear(tokens * self.hardware.token_s),
            },
            # What the host attends to it cannot copy meanwhile: both are bound by its memory, and
            # the device waits for both (as in the paper's cost model of decode).
            Resource.TO_DEVICE: {
                "weights": self._copied("weights", self._weight_bytes * passes, up=True),
                "attention on the host": attention if on_host else Linear(),
                "cache": Linear() if on_host else self._brought(tokens),
                "activations": self._copied("activations", self._hidden_bytes(tokens), up=True),
            },
            Resource.TO_HOST: {
                "cache": self._copied("cache", self._stored_bytes(tokens), up=False),
                "activations": self._copied("activations", self._hidden_bytes(tokens), up=False),
            },
            Resource.DISK: {
                "weights read": self._read("weights", self._weight_bytes * passes),
                "cache read": self._read("cache", self._stored_bytes(tokens * self._mean_own_len)),
                "activations read": self._read("activations", self._hidden_bytes(tokens)),
                "cache written": self._written("cache", self._stored_bytes(tokens)),
                "ordered cache": Linear() if unified else ordered,
                "steps of the disk": Linear() if unified else disk_steps,
                "activations written": self._written("activations", self._hidden_bytes(tokens)),
            },
        }

    @property
    def _caches(self) -> bool:
        return self.lengths.decodes or self.execution.caches_one_token

    @property
    def _weight_bytes(self) -> int:
        """Of all layers, as stored."""
        spec, compression = self.setup.spec, self.setup.compression
        return spec.linear_weight_bytes(compression, dtype_bytes=self.setup.dtype_bytes)

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

    def _hidden_bytes(self, tokens: float) -> float:
        """Of hidden states of some tokens, once for every layer."""
        spec = self.setup.spec
        return tokens * spec.num_layers * spec.hidden_size * self.setup.dtype_bytes

    def _stored_bytes(self, tokens: float) -> float:
        """Of keys and values of some tokens in all layers, as stored."""
        spec = self.setup.spec
        return tokens * spec.cache_bytes(
            self.setup.compression, num_tokens=1, dtype_bytes=self.setup.dtype_bytes
        )

    def _cache_numbers(self, tokens: float) -> float:
        """Keys and values of some tokens in all layers."""
        return 2 * tokens * self.setup.spec.num_layers * self.setup.spec.hidden_size

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
        room_bytes = self._stored_bytes(self.lengths.final_len) / self._num_rooms
        cache_bytes = round(self._stored_bytes(self.shape.cached_tokens))
        limit = cache_bytes if self.shape.cache_limited else None
        layers, linked = self.setup.spec.num_layers, not self.setup.unified
        at_once = spilled_at_once(limit, layers, linked=linked)
        return ceil(self.load.decoding * room_bytes / at_once)

    @property
    def _num_rooms(self) -> int:
        """Keys and values of each layer have a room each."""
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

    def _products(self, tokens: float, rows: float) -> Linear:
        spec, rate = self.setup.spec, self.hardware.product_flop_per_s
        numbers = [out * in_ for out, in_ in spec.matrix_shapes.values()]
        layer_s = sum(2 * tokens * size / rate.at(size, rows) for size in numbers)
        return Linear(layer_s * spec.num_layers)

    def _prefill_attention(self) -> Linear:
        """Two products of each query with each key, or value, before it."""
        own, length = self.lengths.own_len, self.lengths.prompt_len
        seen = length if self.execution.attends_to_all else length - own / 2
        pairs = self.lengths.num_requests * own * seen
        spec = self.setup.spec
        flop = 4 * pairs * spec.hidden_size * spec.num_layers
        return Linear(flop / self.hardware.attention_flop_per_s)

    def _own_attention(self, attended: Linear, *, on_host: bool) -> Linear:
        token_bytes = self._cache_numbers(1) * self.setup.dtype_bytes
        hardware = self.hardware
        rate = (
            hardware.host_attention_bytes_per_s
            if on_host
            else hardware.device_attention_bytes_per_s
        )
        return attended * (token_bytes / rate)

    def _shared_attention(self, tokens: float) -> Linear:
        spec = self.setup.spec
        flop = 4 * tokens * self.lengths.shared_len * spec.hidden_size * spec.num_layers
        return Linear(flop / self.hardware.attention_flop_per_s)

    def _norms_and_copies(self, tokens: float) -> Linear:
        return Linear(self._hidden_bytes(tokens) / self.hardware.hidden_bytes_per_s)

    def _dequantized(self, passes: int, micro_batches: int) -> Linear:
        if self.setup.compression.weight_bits is None:
            return Linear()
        times = micro_batches if self.execution.dequantizes_each else passes
        spec, rate = self.setup.spec, self.hardware.dequantized_weights_per_s
        numbers = [out * in_ for out, in_ in spec.matrix_shapes.values()]
        layer_s = sum(numbers) / rate.at(max(*numbers, rate.points[0][0]))
        return Linear(times * layer_s * spec.num_layers)

    def _dequantized_cache(self, attended: Linear) -> Linear:
        if self.setup.compression.cache_bits is None:
            return Linear()
        return attended * (self._cache_numbers(1) / self.hardware.dequantized_cache_per_s)

    def _quantized(self, tokens: float) -> Linear:
        if self.setup.compression.cache_bits is None:
            return Linear()
        return Linear(self._cache_numbers(tokens) / self.hardware.quantized_cache_per_s)

    def _ordered(self, tokens: float) -> Linear:
        """Last positions of a cache on disk: copied, for every token, until they are a run."""
        if self.execution.stores_in_order:
            return Linear()
        passes = self.load.decode_passes
        runs, rest = divmod(passes - 1, RUN_LEN)  # there are none yet in the first
        copied = runs * RUN_LEN * (RUN_LEN + 1) / 2 + rest * (rest + 1) / 2
        num_bytes = 2 * self._stored_bytes(tokens * copied / passes)
        return placed_on("cache", Tier.DISK) * (
            num_bytes / self.hardware.host_attention_bytes_per_s
        )

    def _disk_steps(self, micro_batches: int) -> Linear:
        if self.execution.stores_in_order:
            return Linear()
        seconds = micro_batches * self.setup.spec.num_layers * self.hardware.disk_step_s
        return placed_on("cache", Tier.DISK) * seconds

    def _link_steps(self) -> Linear:
        """What it takes whoever tells a device of its own of what is not on it, pool by pool."""
        if self.setup.unified:
            return Linear()
        passes, layers = self.load.passes_with_decode, self.setup.spec.num_layers
        seconds = passes * self._num_pools * layers * self.hardware.link_step_s
        return placed_on("cache", *OFF_DEVICE) * seconds

    def _head(self, tokens: float, at_once: float) -> Linear:
        spec = self.setup.spec
        size = spec.vocab_size * spec.embedding_size
        rows = max(1.0, min(HEAD_ROWS, at_once))
        return Linear(2 * tokens * size / self.hardware.product_flop_per_s.at(size, rows))

    def _steps(self, micro_batches: int, *, captured: bool = False) -> Linear:
        each_s = self.hardware.step_s
        if captured and self.hardware.captured_step_s is not None:
            each_s = self.hardware.captured_step_s
        return Linear(micro_batches * self.setup.spec.num_layers * each_s)

    def _brought(self, tokens: float) -> Linear:
        """What some tokens in decode attend to and is not on the device, with the room there."""
        brought = tokens * self._brought_part
        read = self._stored_bytes(brought * self._mean_own_len)
        room = self._stored_bytes(brought * self._mean_room)
        return self._copied("cache", read, up=True) + self._copied(
            "cache", room, up=True, tiers=(Tier.HOST,)
        )

    @property
    def _brought_part(self) -> float:
        """All keys and, with sparse attention, values that are picked out where they are."""
        compression = self.setup.compression
        if compression.attention_percent is None or compression.cache_bits is not None:
            return 1.0
        return (1 + compression.attention_percent / 100) / 2

    def _copied(
        self, placed: str, num_bytes: float, *, up: bool, tiers: tuple[Tier, ...] = OFF_DEVICE
    ) -> Linear:
        """What is not on the device passes its link, also what is on disk."""
        hardware = self.hardware
        rate = hardware.host_to_device_bytes_per_s if up else hardware.device_to_host_bytes_per_s
        if rate is None:
            return Linear()
        return placed_on(placed, *tiers) * (num_bytes / rate)

    def _read(self, placed: str, num_bytes: float) -> Linear:
        return placed_on(placed, Tier.DISK) * (num_bytes / self.hardware.disk_read_bytes_per_s)

    def _written(self, placed: str, num_bytes: float) -> Linear:
        return placed_on(placed, Tier.DISK) * (num_bytes / self.hardware.disk_write_bytes_per_s)
