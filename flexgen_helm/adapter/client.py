"""The client HELM calls: looks a request up in HELM's cache, or has it computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from helm.clients.client import CachingClient
from helm.common.cache import KeyValueStoreCacheConfig
from helm.common.hierarchical_logger import hlog
from helm.common.request import Request, RequestResult

from flexgen_helm.adapter.backend import DEFAULT_BACKEND, EngineSettings
from flexgen_helm.adapter.cache import CacheKey, ResponseCache, cache_key
from flexgen_helm.adapter.compute import ComputeJob, log_unexpected
from flexgen_helm.adapter.convert import (
    check_supported,
    to_failure,
    to_generation_request,
    to_request_result,
)
from flexgen_helm.adapter.engines import ENGINES
from flexgen_helm.adapter.limits import default_budget, default_offload_dir
from flexgen_helm.adapter.preparation import Answers, Deployed, prepare
from flexgen_helm.adapter.progress import SuiteProgress
from flexgen_helm.adapter.prompts import encode_prompt
from flexgen_helm.adapter.responses import Response
from flexgen_helm.adapter.tokenizer import FlexGenTokenizer
from flexgen_helm.errors import FlexGenError, InvalidSettingError
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.policy import Policy

ADVICE = (
    "flexgen_helm: HELM sends at most --num-threads requests at once, and batches are as small."
    " Pass --runner-class-name flexgen_helm.FlexGenRunner to batch whole suites."
)
"""Said once per process, where requests come one by one."""

ARGUMENTS = tuple(field.name for field in fields(EngineSettings))
"""What `client_spec.args` of a deployment may say."""


class FlexGenClient(CachingClient):
    """Serves one deployment. Safe to call from several threads."""

    def __init__(
        self,
        cache_config: KeyValueStoreCacheConfig,
        tokenizer: FlexGenTokenizer,
        checkpoint: str,
        compression: str = "none",
        dtype: str = "auto",
        device: str = "auto",
        policy: Mapping[str, Any] | None = None,
        budget: Mapping[str, Any] | None = None,
        offload_dir: str | None = None,
        backend: str = DEFAULT_BACKEND,
        end_of_text_token: str | None = None,
        **unknown: Any,
    ) -> None:
        """Make a client; HELM fills in cache, tokenizer and end-of-text token.

        The other arguments are those of `EngineSettings`, and what `client_spec.args` in a
        ``model_deployments.yaml`` may say; `policy` has the fields of `Policy`, `budget` those of
        `MemoryBudget`.

        Raises:
            InvalidSettingError: an argument or field that does not exist, or a value out of range.
        """
        if unknown:
            raise InvalidSettingError(
                f"client_spec.args has {', '.join(unknown)}, which is none of"
                f" {', '.join(ARGUMENTS)}: correct the deployment's entry in model_deployments.yaml"
            )
        super().__init__(cache_config=cache_config)
        self._responses = ResponseCache(cache_config)
        self._tokenizer = tokenizer
        self._start_token = end_of_text_token
        self._answers: Answers | None = None
        self.service = ENGINES.service(
            EngineSettings(
                checkpoint=checkpoint,
                compression=compression,
                dtype=dtype,
                device=device,
                policy=None if policy is None else Policy.from_settings(policy),
                budget=(default_budget() if budget is None else MemoryBudget.from_settings(budget)),
                offload_dir=offload_dir or default_offload_dir(),
                backend=backend,
            )
        )

    def make_request(self, request: Request) -> RequestResult:
        """Answer one request. Errors are returned as failures HELM does not retry."""
        try:
            key = self.key(request)
            response, cached = self._known(key) or self._fetch(key, request)
            self._responses.count(cached=cached)
            return to_request_result(request, response, cached=cached)
        except FlexGenError as error:
            return to_failure(str(error))
        except Exception as error:
            log_unexpected(error)
            return to_failure(f"{type(error).__name__}: {error}")

    def load_ahead(self) -> None:
        """Begin to load the engine, if it is certain that some request must be computed.

        Raises:
            FlexGenError: the checkpoint cannot be found or read.
        """
        if self._responses.is_new:
            self.service.begin_load()
            # Both are wanted before the engine is, and would have to wait for it.
            _ = self._tokenizer.text_tokenizer, self.service.identity
            self.service.load_ahead()

    def prepare(self, requests: Sequence[Request], *, name: str, progress: SuiteProgress) -> bool:
        """Compute what the cache lacks of these requests, together, for `make_request` to find.

        Args:
            requests: any number; equal ones are computed once.
            name: of the deployment.
            progress: what shows how far they are.

        Returns:
            whether there is an answer to every one of them.
        """
        deployed = Deployed(
            name=name,
            key_of=self.key,
            job_of=self.job,
            cache=self._responses,
            borrow_engine=self.service.engine,
        )
        self._answers = prepare(deployed, requests, progress)
        return self._answers.complete

    def key(self, request: Request) -> CacheKey:
        """Key of a request in HELM's cache.

        Raises:
            InvalidRequestError: the request asks for something the model cannot do.
            CheckpointError: the checkpoint cannot be found or read.
            NonRetriableException: nor can the tokenizer.
        """
        check_supported(request)
        return cache_key(
            self.service.identity,
            request,
            tokenizer=self._tokenizer.text_tokenizer.fingerprint,
            start_token=self._start_token,
        )

    def job(self, request: Request) -> ComputeJob:
        """Return what the engine has to compute for a request."""
        prompt = encode_prompt(
            request.prompt,
            self._tokenizer.text_tokenizer,
            start_token=self._start_token,
            shares=request.echo_prompt,
        )
        return ComputeJob(prompt=prompt, request=to_generation_request(request, prompt))

    def responses(self, requests: Sequence[Request]) -> list[tuple[Response, int]]:
        """Return the prepared answers to these requests, and how many equal ones each answers."""
        if self._answers is None:
            return []
        return self._answers.responses([self.key(request) for request in requests])

    def _known(self, key: CacheKey) -> tuple[Response, bool] | None:
        return None if self._answers is None else self._answers.take(key)

    def _fetch(self, key: CacheKey, request: Request) -> tuple[Response, bool]:
        cached = self._responses.lookup(key)
        response = self._compute(key, request) if cached is None else cached
        if self._answers is not None:
            self._answers.add(key, response, fresh=False)
        return response, cached is not None

    def _compute(self, key: CacheKey, request: Request) -> Response:
        if self._answers is None and ENGINES.is_first_call():
            hlog(ADVICE)
        response = self.service.submit(self.job(request)).result()
        self._responses.put(key, response)
        return response
