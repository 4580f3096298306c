"""Fake backends that tests can watch and make fail; deployments name them by class path."""

from dataclasses import dataclass, field

from flexgen_helm.adapter.fake import FakeBackend, FakeEngine

WATCHED = "tests.adapter.backends.WatchedBackend"


@dataclass
class Watch:
    """What the watched backend was asked for, and what it is to do wrong."""

    loaded: list = field(default_factory=list)
    batches: list = field(default_factory=list)
    closed: int = 0
    fail_load: Exception | None = None
    fail_after: int | None = None
    fail_close: Exception | None = None
    on_load: object = None
    on_result: object = None


WATCH = Watch()


class WatchedBackend(FakeBackend):
    def load(self, settings):
        if WATCH.fail_load is not None:
            raise WATCH.fail_load
        WATCH.loaded.append(settings)
        if WATCH.on_load is not None:
            WATCH.on_load()
        return WatchedEngine(super().load(settings).description)


class WatchedEngine(FakeEngine):
    def generate(self, requests, *, on_result=None, on_error=None):
        WATCH.batches.append(
            [request for request in requests if len(request.prompt_token_ids) <= self.max_positions]
        )

        def check(index, result):
            if index == WATCH.fail_after:
                raise RuntimeError("the engine broke")
            if WATCH.on_result is not None:
                WATCH.on_result(index)
            on_result(index, result)

        return super().generate(requests, on_result=check, on_error=on_error)

    def close(self):
        WATCH.closed += 1
        if WATCH.fail_close is not None:
            raise WATCH.fail_close
        super().close()
