"""The process that computes, as seen from HELM's: started early, asked later.

HELM and torch take about as long to import. In two processes they are imported at once, HELM's
process never imports torch or transformers, and while one computes, the other can go on.
"""

from __future__ import annotations

import atexit
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, cast

from flexgen_helm.adapter.backend import EngineSettings, Identity, OnError, OnResult
from flexgen_helm.adapter.engine_server import DONE, OUTCOME
from flexgen_helm.adapter.text_tokenizer import TokenizerDescription
from flexgen_helm.child import child_environment
from flexgen_helm.errors import EngineClosedError, FlexGenError
from flexgen_helm.specs.request import EngineDescription, GenerationRequest, GenerationResult

OnOutcome = Callable[[int, Any], None]
"""Called with the index of a request and its result, or why it cannot be served."""

RUNNER = "flexgen_helm.FlexGenRunner"
"""The name the runner is given to `helm-run` by."""

SERVER = "flexgen_helm.adapter.engine_server"


class ServerSideError(Exception):
    """The traceback an error has in the process it was raised in; its cause in this one."""


class EngineProcess:
    """Starts when it is first needed, or before; serves one call at a time."""

    def __init__(self) -> None:
        self._calling = threading.Lock()
        self._lock = threading.Lock()
        self._child: _Child | None = None
        atexit.register(self.stop)

    def start(self) -> None:
        """Start the process and return at once, while it imports what it will need."""
        self._running()

    @property
    def started(self) -> bool:
        """Whether there is a process, ready or not."""
        return self._child is not None and not self._child.ended

    def stop(self) -> None:
        """End the process, whatever it does. It is started again on demand."""
        with self._lock:  # not that of calls: one may last for hours
            if self._child is not None:
                self._child.end()

    def identify(self, settings: EngineSettings) -> Identity:
        """See `Backend.identify`."""
        return cast("Identity", self.call("identify", settings))

    def describe_tokenizer(self, source: str, kwargs: dict[str, Any]) -> TokenizerDescription:
        """Have the process load a tokenizer."""
        return cast("TokenizerDescription", self.call("describe_tokenizer", source, kwargs))

    def call(self, name: str, *arguments: Any, on_outcome: OnOutcome | None = None) -> Any:
        """Call a method of `EngineServer`.

        Raises:
            Exception: what the method raised, or `on_outcome`; the latter ends the process.
            EngineClosedError: the process ended.
        """
        with self._calling:
            kind, *answer = self._running().exchange((name, arguments), on_outcome or _ignore)
        if kind == DONE:
            return answer[0]
        raised, traceback = answer
        raise raised from ServerSideError(traceback)

    def _running(self) -> _Child:
        with self._lock:
            if self._child is None or self._child.ended:
                self._child = _Child()
            return self._child


class _Child:
    """A process that has been started, and the connection to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", SERVER, str(theirs.fileno())],
                stdin=subprocess.PIPE,  # ends when this process does, and with it the other
                pass_fds=[theirs.fileno()],
                env=child_environment(),
            )
        self._connection = Connection(ours.detach())

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended."""
        return self.process.returncode is not None

    def end(self) -> int:
        """End it, unless it has ended, and return its status."""
        self.process.kill()
        self.process.communicate()
        return self.process.returncode

    def exchange(self, call: tuple[Any, ...], on_outcome: OnOutcome) -> tuple[Any, ...]:
        """Send a call, hand on the outcomes that come, and return the last message."""
        try:
            self._reach(self._connection.send, call)
            while (message := self._reach(self._connection.recv))[0] == OUTCOME:
                on_outcome(*message[1:])
            return cast("tuple[Any, ...]", message)
        except BaseException:  # an interrupt, or an outcome nobody takes: they are out of step
            self.end()
            raise

    def _reach(self, transfer: Callable[..., Any], *arguments: Any) -> Any:
        """Send or receive; where that fails, the process has ended."""
        try:
            return transfer(*arguments)
        except (EOFError, OSError) as error:
            raise EngineClosedError(
                f"the process that computes ended with status {self.end()} (-9: killed, mostly for"
                " want of memory): free memory or choose a smaller micro_batch_size, and run again"
            ) from error


def wants_engine(command: Sequence[str]) -> bool:
    """Whether a `helm-run` command line names our runner, and asks for more than help."""
    names_ours = any(argument.endswith(RUNNER) for argument in command)
    return names_ours and not asks_for_help(command)


def asks_for_help(command: Sequence[str]) -> bool:
    """Whether a command line asks for help, and for nothing else that it says."""
    return not {"-h", "--help"}.isdisjoint(command)


class RemoteEngine:
    """A `GenerationEngine` whose model is in an engine process."""

    def __init__(self, process: EngineProcess, settings: EngineSettings) -> None:
        self._process = process
        self.description: EngineDescription = process.call("load", settings)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        on_result: OnResult | None = None,
        on_error: OnError | None = None,
    ) -> list[GenerationResult]:
        results: dict[int, GenerationResult] = {}

        def hand_on(index: int, outcome: GenerationResult | FlexGenError) -> None:
            if isinstance(outcome, FlexGenError):
                (on_error or _ignore)(index, outcome)
            else:
                results[index] = outcome
                (on_result or _ignore)(index, outcome)

        asked = list(requests), on_error is not None
        self._process.call("generate", *asked, on_outcome=hand_on)
        return [results[index] for index in sorted(results)]

    def close(self) -> None:
        if self._process.started:  # none is started only to hear that the engine is gone
            with suppress(EngineClosedError):
                self._process.call("close")


class ProcessBackend:
    """Makes `RemoteEngine`s: the backend that runs models for HELM."""

    def identify(self, settings: EngineSettings) -> Identity:
        return ENGINE_PROCESS.identify(settings)

    def begin_load(self, settings: EngineSettings) -> None:
        ENGINE_PROCESS.call("begin_load", settings)

    def load(self, settings: EngineSettings) -> RemoteEngine:
        return RemoteEngine(ENGINE_PROCESS, settings)


def _ignore(index: int, outcome: object) -> None:
    pass


ENGINE_PROCESS = EngineProcess()
"""The one of this process: two large models rarely fit into memory."""
