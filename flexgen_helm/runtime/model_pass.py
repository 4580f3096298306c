"""One pass over the weights, with all micro-batches it serves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from flexgen_helm.model import opt
from flexgen_helm.offload.link import Mark
from flexgen_helm.offload.weights import EMBEDDINGS, Part, layer_part
from flexgen_helm.runtime.activations import Activations
from flexgen_helm.runtime.decode import DecodeMicroBatch
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.prefill import PrefillMicroBatch
from flexgen_helm.runtime.prefill_block import PrefillBlock
from flexgen_helm.runtime.read_ahead import ReadAhead
from flexgen_helm.runtime.schedule import Half, Turn, block_schedule, turns_of_pass
from flexgen_helm.specs.chunks import LINKED_READS_IN_MEMORY, READS_BEHIND, READS_IN_MEMORY
from flexgen_helm.specs.placement import ON_DEVICE, Placement

MicroBatch = PrefillMicroBatch | DecodeMicroBatch


def num_rows(micro_batches: Iterable[MicroBatch]) -> int:
    """Rows of all of them together."""
    return sum(len(micro_batch.token_ids) for micro_batch in micro_batches)


class _Begun(NamedTuple):
    """A micro-batch between the halves of a layer."""

    hidden: Tensor
    attention: Callable[[], Tensor]


class _Read(NamedTuple):
    """A read of a turn."""

    turn: Turn
    number: int


class ModelPass:
    """Carries out the schedule of a pass.

    Args:
        model: what computes.
        micro_batches: what passes.
        placement: of hidden states between layers.
    """

    def __init__(
        self, model: Model, micro_batches: Sequence[MicroBatch], placement: Placement
    ) -> None:
        self._model = model
        self._micro_batches = micro_batches
        self._activations = Activations(placement, model.spill, model.link)
        self._begun: dict[int, _Begun] = {}
        brings = model.cache_format.moves or placement != ON_DEVICE
        self._link = model.link if brings else None
        """What memory of the device is filled through, ahead of its use."""
        self._marks: deque[Mark] = deque()
        """Behind reads whose use was given to the device."""
        self._packed = num_rows(micro_batches) <= model.few_rows
        """Whether weights stay as they are stored, as few rows are multiplied with them. What is
        dequantized serves all micro-batches: it is for rows of the pass, whatever each has."""

    def run(self, blocks: Sequence[PrefillBlock] = ()) -> list[Tensor]:
        """Return, per micro-batch, last hidden states of the rows that are needed.

        Args:
            blocks: those in prefill, which are told when a layer has ended.
        """
        model, micro_batches = self._model, self._micro_batches
        num_layers = model.spec.num_layers
        part = model.weights.fetch(EMBEDDINGS)
        for index, mb in enumerate(micro_batches):
            hidden = opt.embed(model.spec, part, mb.token_ids, mb.positions)
            self._activations.put(index, hidden)
        read_ahead = ReadAhead(
            self._reads(),
            lambda read: micro_batches[read.turn.micro_batch].begin_read(
                read.turn.layer, read.number
            ),
            most_bytes=self._read_bytes,
            most_turns=READS_IN_MEMORY // 2 if self._link is None else None,
        )

        def begin_read() -> None:
            self._wait_for_device()
            read_ahead.advance()

        outputs = []
        for step in block_schedule(num_layers, len(micro_batches), apart=model.attends_apart):
            if step.begins_layer:
                del part  # its memory may be needed for the next one
                part = model.weights.fetch(layer_part(step.layer), packed=self._packed)
            if step.half is Half.PROJECT:
                begin_read()
                turn = Turn(step.layer, step.micro_batch)
                self._project(part, turn, step.following, begin_read)
            elif step.layer < num_layers - 1:
                self._activations.put(step.micro_batch, self._finish(part, step.micro_batch))
            else:
                outputs.append(self._finish(part, step.micro_batch))
            if step.ends_layer:
                for block in blocks:
                    block.end_layer(step.layer)
        return outputs

    @property
    def _read_bytes(self) -> int:
        """What is read may take so much memory when the next read begins."""
        reads = READS_IN_MEMORY
        if self._link is not None:
            reads = LINKED_READS_IN_MEMORY - 2 * READS_BEHIND
        return reads * self._model.spilled_at_once

    def _wait_for_device(self) -> None:
        """Let the device come close: what is ahead of it takes memory."""
        if self._link is None:
            return
        self._marks.append(self._link.mark())
        if len(self._marks) > READS_BEHIND:
            self._marks.popleft().wait()

    def _project(
        self, part: Part, turn: Turn, following: Turn | None, next_read: Callable[[], None]
    ) -> None:
        """Compute what attention begins with, and begin it; it tells of reads behind the first."""
        model, micro_batch = self._model, self._micro_batches[turn.micro_batch]
        hidden = self._activations.take(turn.micro_batch)
        if following is not None:
            self._activations.begin_take(following.micro_batch)
        projected = opt.project(model.spec, part, hidden)
        last = turn.layer == model.spec.num_layers - 1
        attention = micro_batch.begin_attention(
            turn.layer, *projected, last=last, next_read=next_read
        )
        if last and micro_batch.needed is not None:
            # Of the others the last layer needs keys and values alone.
            hidden = hidden[micro_batch.needed]
        self._begun[turn.micro_batch] = _Begun(hidden, attention)

    def _finish(self, part: Part, index: int) -> Tensor:
        """Compute hidden states of what was attended to."""
        hidden, attention = self._begun.pop(index)
        return opt.finish(self._model.spec, part, hidden, attention())

    def _reads(self) -> Iterator[_Read]:
        """Reads of all turns, in the order in which what they bring is attended to."""
        for turn in self._turns():
            for number in range(self._micro_batches[turn.micro_batch].num_reads):
                yield _Read(turn, number)

    def _turns(self) -> Iterator[Turn]:
        """Turns of the pass, and the first of the next, as far as they are known.

        Those whose sequences change in between read what they need for being packed anew.
        """
        yield from turns_of_pass(self._model.spec.num_layers, len(self._micro_batches))
        for index, micro_batch in enumerate(self._micro_batches):
            if isinstance(micro_batch, DecodeMicroBatch) and not self._model.attends_apart:
                yield Turn(0, index)
