"""HELM's request cache, keyed by everything that changes an answer and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from helm.common.cache import (
    KeyValueStoreCacheConfig,
    SqliteCacheConfig,
    cache_stats,
    create_key_value_store,
    write_to_key_value_store,
)
from helm.common.key_value_store import KeyValueStore, request_to_key
from helm.common.request import Request

from flexgen_helm.adapter.backend import Identity
from flexgen_helm.adapter.convert import to_sampling
from flexgen_helm.adapter.responses import Response

CacheKey = dict[str, Any]

REVISION = 3
"""Raised by whoever changes what the engine computes, so that older answers are not found."""


def cache_key(
    identity: Identity, request: Request, *, tokenizer: str, start_token: str | None
) -> CacheKey:
    """Return the key of a request's answer.

    Neither the deployment's name nor batching, placement or device are part of it. The sampling
    fields are those the engine gets, in the types it gets them, so that 0 and 0.0 are one key;
    the seed is HELM's `random`, in clear. The tokenizer is HELM's choice, not the checkpoint's.

    Args:
        identity: of the engine.
        request: what is asked.
        tokenizer: fingerprint of what tokenizes the prompt.
        start_token: what an empty prompt may consist of; see `encode_prompt`.
    """
    sampling = to_sampling(request)
    return {
        "revision": REVISION,
        **asdict(identity),
        **{name: value for name, value in asdict(sampling).items() if name != "seed"},
        "stop": list(sampling.stops),
        "tokenizer": tokenizer,
        "start_token": start_token,
        "prompt": request.prompt,
        "echo_prompt": request.echo_prompt,
        "random": request.random,
    }


key_text = request_to_key
"""The text HELM's stores know a key by; equal keys have equal texts."""


class ResponseCache:
    """One of HELM's stores, with its statistics of queries and computations kept right."""

    def __init__(self, config: KeyValueStoreCacheConfig) -> None:
        self._config = config

    @property
    def is_new(self) -> bool:
        """Whether it can hold no answer yet."""
        config = self._config
        return isinstance(config, SqliteCacheConfig) and not Path(config.path).exists()

    @contextmanager
    def open(self) -> Iterator[KeyValueStore]:
        """Open the store for many look-ups and writes. SQLite's file is locked only in each."""
        with create_key_value_store(self._config) as store:
            yield store

    def lookup(self, key: CacheKey) -> Response | None:
        """Look up one answer; the store is closed again before anything is computed."""
        with self.open() as store:
            return store.get(key)

    def put(self, key: CacheKey, response: Response) -> None:
        """Keep one answer."""
        with self.open() as store:
            write_to_key_value_store(store, key, response)

    def count(self, *, cached: bool) -> None:
        """Count an answered request in the statistics HELM prints."""
        cache_stats.increment_query(self._config.cache_stats_key)
        if not cached:
            cache_stats.increment_compute(self._config.cache_stats_key)
