"""The process that computes, as seen from inside: it serves what `engine_process` asks for.

Imports no helm: that torch and helm are imported side by side is what the process is for.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from flexgen_helm.adapter.backend import EngineSettings, GenerationEngine, Identity
from flexgen_helm.adapter.runtime_backend import RuntimeBackend
from flexgen_helm.adapter.text_tokenizer import TokenizerDescription, load_description
from flexgen_helm.errors import EngineClosedError, FlexGenError
from flexgen_helm.notices import one_line_warnings
from flexgen_helm.specs.request import EngineDescription, GenerationRequest, GenerationResult

OUTCOME, DONE, FAILED = "outcome", "done", "failed"
"""Kinds of messages: of a request, on the way; what a call returns; what it raised and where."""

Work = tuple[Future[Any], Callable[[], Any]]
"""What is to be done in the main thread, and where its outcome goes."""


class EngineServer:
    """Has one engine at most. Each public method can be called from the other process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._backend = RuntimeBackend()
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._begun: tuple[EngineSettings, Future[GenerationEngine]] | None = None
        self._engine: GenerationEngine | None = None

    def run(self) -> None:
        """Answer calls, one at a time, until there is nobody to answer to.

        Calls are taken in a thread of their own; all that computes is done in this one, the main
        thread: OpenMP keeps a team of threads for each thread that computes and, where these are
        more than there are processors, lets them sleep between any two operations; and only the
        main thread's memory is the allocator's to reuse without limit.
        """
        threading.Thread(target=self._serve, daemon=True).start()
        for future, function in iter(self._work.get, None):
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

    def _serve(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                try:
                    self._connection.send(self._answer(*self._connection.recv()))
                except (EOFError, OSError):
                    raise
                except Exception as error:  # what one process has, the other cannot make
                    self._connection.send(_failure(error))
        self._work.put(None)

    def _compute(self, function: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._work.put((future, function))
        return future

    def identify(self, settings: EngineSettings) -> Identity:
        """See `Backend.identify`."""
        return self._backend.identify(settings)

    def begin_load(self, settings: EngineSettings) -> None:
        """Begin to load an engine. One that was begun before with other settings is given up."""
        if self._begun is None or self._begun[0] != settings:
            self._give_up_begun()
            self._begun = settings, self._compute(partial(self._backend.load, settings))

    def load(self, settings: EngineSettings) -> EngineDescription:
        """See `Backend.load`; the engine stays here."""
        self.begin_load(settings)
        assert self._begun is not None
        (_, future), self._begun = self._begun, None
        self._engine = future.result()
        return self._engine.description

    def generate(self, requests: list[GenerationRequest], serves_others: bool) -> None:
        """See `GenerationEngine.generate`; what is known of a request is sent at once.

        Args:
            requests: what to serve.
            serves_others: whether those that cannot be served are sent their error, too.
        """
        generate = partial(self._open_engine().generate, requests, on_result=self._send)
        on_error = self._send if serves_others else None
        self._compute(partial(generate, on_error=on_error)).result()

    def close(self) -> None:
        """See `GenerationEngine.close`."""
        self._open_engine().close()
        self._engine = None

    def describe_tokenizer(self, source: str, kwargs: dict[str, Any]) -> TokenizerDescription:
        """See `load_description`."""
        return load_description(source, **kwargs)

    def _send(self, index: int, outcome: GenerationResult | FlexGenError) -> None:
        self._connection.send((OUTCOME, index, outcome))

    def _give_up_begun(self) -> None:
        if self._begun is not None:
            with suppress(Exception):  # nobody wants it, so nobody is told
                self._begun[1].result().close()

    def _open_engine(self) -> GenerationEngine:
        if self._engine is None:
            raise EngineClosedError("the engine's process was started anew: load the engine again")
        return self._engine

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        try:
            return DONE, getattr(self, name)(*arguments)
        except Exception as error:
            return _failure(error)


def _failure(error: Exception) -> tuple[Any, ...]:
    return FAILED, _portable(error), "".join(traceback.format_exception(error))


def _portable(error: Exception) -> Exception:
    """Return an error that the other process can make without importing torch."""
    if isinstance(error, FlexGenError) or type(error).__module__ == "builtins":
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    """End once the parent has: a pipe from it ends however it dies, even in a long computation."""
    sys.stdin.buffer.read()
    os._exit(0)


def _import_slow_modules() -> None:
    """Import what every call needs. What fails is imported again, and reported, in a call."""
    with suppress(Exception):
        import transformers

        import flexgen_helm.runtime.engine

        _ = transformers.AutoTokenizer, flexgen_helm.runtime.engine


def main() -> None:
    """Serve the process at the other end of the socket whose number is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _import_slow_modules()
    with one_line_warnings():
        EngineServer(Connection(int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
