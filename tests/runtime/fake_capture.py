"""Captures on a CPU: every operation with the very tensors it read and wrote, as a GPU does it.

What a replay reads of Python - a length, another tensor in a captured one's place - is that of the
pass that was captured.
"""

from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flexgen_helm.runtime.cuda_graphs import CaptureError
from tests.offload.fake_link import GARBAGE


class FakeCapture:
    """Counts what is captured and replayed.

    Args:
        failure: what is raised in the middle of capturing.
    """

    def __init__(self, failure=None):
        self.failure = failure
        self.captured = self.replayed = 0

    def __call__(self, compute):
        recorder = _Recorder(self.failure)
        try:
            with recorder:
                results = compute()
        except RuntimeError as error:
            raise CaptureError(str(error)) from error
        for tensor in recorder.written:  # computing has not begun
            tensor.fill_(GARBAGE)
        self.captured += 1

        def replay():
            self.replayed += 1
            for call in recorder.calls:
                call.again()
            return results

        return replay


class _Recorder(TorchDispatchMode):
    def __init__(self, failure):
        super().__init__()
        self.calls, self.written = [], []
        self._failure = failure

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.calls.append(_Call(func, args, kwargs, result))
        read = {_memory(x) for x in _tensors((args, kwargs))}
        self.written += [x for x in _tensors(result) if _memory(x) not in read]
        if self._failure is not None and len(self.calls) == 40:
            raise self._failure
        return result


class _Call(NamedTuple):
    func: object
    args: tuple
    kwargs: dict
    result: object

    def again(self):
        again = self.func(*self.args, **self.kwargs)
        for before, now in zip(_tensors(self.result), _tensors(again), strict=True):
            if _memory(before) != _memory(now):
                before.copy_(now)


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _memory(tensor):
    return None if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()
