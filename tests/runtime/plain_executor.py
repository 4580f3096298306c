"""The plain batched engine: every prompt computed whole, every sequence with a cache of its own.

The oracle of the executor, which must return the same whatever it shares, stores or postpones.
"""

from math import ceil

import numpy as np
import torch
import torch.nn.functional as F

from flexgen_helm.model import opt
from flexgen_helm.model.kv_cache import KeysValues
from flexgen_helm.offload.weights import EMBEDDINGS, layer_part
from flexgen_helm.runtime.head import Head
from flexgen_helm.runtime.job import Job
from flexgen_helm.runtime.statistics import Peak
from tests.model.plain_sampling import distribution


class PlainExecutor:
    """Prefills all requests together, then decodes all sequences together.

    Attributes:
        margins: by indices of request and completion, for each token how much the probabilities
            would have to change for another one to be drawn.
    """

    def __init__(self, model):
        self._model = model
        self._head = _MarginHead(model)
        self.margins = {}

    @torch.inference_mode()
    def run(self, requests):
        jobs = [Job(index, request, self._model) for index, request in enumerate(requests)]
        caches = self._prefill(jobs)
        while live := [(s, caches[s]) for job in jobs for s in job.sequences if not s.finished]:
            self._decode(live)
        self.margins = {
            (job.index, index): self._head.margins[sequence]
            for job in jobs
            for index, sequence in enumerate(job.sequences)
            if sequence in self._head.margins
        }
        return [job.result(policy="", peak=Peak(0, None, 0)) for job in jobs]

    def _prefill(self, jobs):
        prompts = [job.request.prompt_token_ids for job in jobs]
        lengths = [len(prompt) for prompt in prompts]
        caches = [_Cache(self._model) for _ in jobs]

        def attention(layer, queries, new):
            outputs, start = [], 0
            for cache, length in zip(caches, lengths, strict=True):
                rows = slice(start, start + length)
                cache.append(layer, new.rows(rows))
                outputs.append(self._attend(queries[rows], new.rows(rows), is_causal=True))
                start += length
            return torch.cat(outputs)

        hidden = self._pass(
            [token for prompt in prompts for token in prompt],
            [position for length in lengths for position in range(length)],
            attention,
        )
        start = 0
        for job, prompt in zip(jobs, prompts, strict=True):
            last = start + len(prompt) - 1
            if job.request.prompt_logprobs:
                scores = self._head.score(hidden, range(start, last), prompt[1:])
                job.prompt_logprobs = (None, *scores)
            drawing = [sequence for sequence in job.sequences if not sequence.finished]
            self._head.draw(hidden, [last] * len(drawing), drawing)
            start = last + 1
        return {
            sequence: cache.copy()
            for job, cache in zip(jobs, caches, strict=True)
            for sequence in job.sequences
        }

    def _decode(self, live):
        def attention(layer, queries, new):
            outputs = []
            for row, (_, cache) in enumerate(live):
                one = slice(row, row + 1)
                past = cache.read(layer)
                keys, values = (torch.cat(x) for x in zip(past, new.rows(one), strict=True))
                outputs.append(self._attend_one(queries[one], KeysValues(keys, values)))
                cache.append(layer, new.rows(one))
            return torch.cat(outputs)

        sequences = [sequence for sequence, _ in live]
        hidden = self._pass(
            [s.generated[-1] for s in sequences], [s.position for s in sequences], attention
        )
        self._head.draw(hidden, range(len(sequences)), sequences)

    def _attend(self, queries, seen, **options):
        q, k, v = self._by_head(queries, *seen)
        attended = F.scaled_dot_product_attention(q, k, v, scale=1.0, **options)
        return attended[0].transpose(0, 1).flatten(1)

    def _attend_one(self, query, seen):
        percent = self._model.compression.attention_percent
        if percent is None:
            return self._attend(query, seen)
        q, k, v = self._by_head(query, *seen)
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        past = weights[..., :-1]
        left_out = past.argsort(-1, descending=True)[..., ceil(past.shape[-1] * percent / 100) :]
        return (weights.scatter(-1, left_out, 0) @ v).flatten()[None]

    def _by_head(self, *rows):
        heads = self._model.spec.num_heads
        return (x.unflatten(1, (heads, -1)).transpose(0, 1)[None] for x in rows)

    def _pass(self, token_ids, positions, attention):
        model = self._model
        part = model.weights.fetch(EMBEDDINGS)
        hidden = opt.embed(model.spec, part, model.indices(token_ids), model.indices(positions))
        for layer in range(model.spec.num_layers):
            part = model.weights.fetch(layer_part(layer))
            queries, new = opt.project(model.spec, part, hidden)
            hidden = opt.finish(model.spec, part, hidden, attention(layer, queries, new))
        return hidden


class _MarginHead(Head):
    def __init__(self, model):
        super().__init__(model)
        self.margins = {}

    def draw(self, hidden, rows, sequences):
        all_logits, _ = self._logits(hidden[list(rows)])
        for logits, sequence in zip(all_logits, sequences, strict=True):
            self.margins.setdefault(sequence, []).append(_margin(logits, sequence.row))
        super().draw(hidden, rows, sequences)


def _margin(logits, row):
    if row.sampling.greedy:
        first, second = logits.softmax(-1).topk(2).values.tolist()
        return first - second
    boundaries = np.cumsum(distribution(logits, row.sampling))
    return np.abs(boundaries - row.random.uniform(len(row.generated))).min()


class _Cache:
    def __init__(self, model, layers=None):
        self._model = model
        self._layers = layers or {}

    def append(self, layer, new):
        cache_format = self._model.cache_format
        stored = [cache_format.decompress(cache_format.compress(rows)) for rows in new]
        if layer in self._layers:
            stored = [torch.cat(x) for x in zip(self._layers[layer], stored, strict=True)]
        self._layers[layer] = KeysValues(*stored)

    def read(self, layer):
        return self._layers[layer]

    def copy(self):
        return _Cache(self._model, dict(self._layers))
