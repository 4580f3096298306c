"""Tensors of the simulated card, and what operations do with them."""

import functools

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flexgen_helm.quant.tensor import QuantizedTensor
from tests.simulated_card.card import GARBAGE, Allocation

aten = torch.ops.aten

WAIT_FOR_VALUES = {
    aten.item,
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.equal,
    aten.allclose,
    aten.nonzero,
    aten.nonzero_numpy,
    aten.masked_select,
    aten.unique_consecutive,
    aten._unique2,
    aten.bincount,
}
"""What results are, or how many, is for the host to know."""

PRODUCTS = {aten.linear, aten.matmul, aten.mm, aten.addmm, aten.bmm, aten.baddbmm}
"""What cuBLAS computes."""

EMPTY = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty}
"""What has whatever was in its memory before."""

TAKE_INDICES = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
"""Indices of the host are copied to the device, which is waited for."""


class DeviceTensor(torch.Tensor):
    """Is said to be on the device.

    Args:
        content: the tensor of the host that it is.
        allocation: whose memory it is.
        card: the device.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, content, allocation, card):
        with torch.inference_mode(content.is_inference()):
            tensor = torch.Tensor._make_wrapper_subclass(
                cls,
                content.size(),
                strides=content.stride(),
                storage_offset=content.storage_offset(),
                dtype=content.dtype,
                device="cuda:0",
            )
        tensor.content, tensor.allocation, tensor.card = content, allocation, card
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        card = next(x.card for x in leaves((args, kwargs)) if isinstance(x, cls))
        return dispatch(card, func, args, kwargs or {})

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *, force=False):
        assert force, "it is on the device"
        return self.cpu().numpy()

    def record_stream(self, stream):
        self.allocation.record(stream.actor)

    def __repr__(self):
        return f"DeviceTensor({self.content})"


class OnCard(TorchDispatchMode):
    """Has operations of this thread make tensors of the card's where they are asked for."""

    def __init__(self, card):
        super().__init__()
        self._card = card

    def __enter__(self):
        # `torch.tensor` otherwise copies to the device without telling anybody.
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self._lifted)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(self._card, func, args, kwargs or {})


def dispatch(card, func, args, kwargs):
    """Do an operation of PyTorch's."""
    given = tensors_in((args, kwargs))
    there = [x for x in given if isinstance(x, DeviceTensor)]
    device = next((x for x in leaves((args, kwargs)) if isinstance(x, torch.device)), None)
    if not there and (device is None or device.type == "cpu"):
        return _on_host(card, func, args, kwargs)
    operation = _Operation(card, func, args, kwargs)
    if func.overloadpacket is aten.copy_:
        to, source = args[:2]
        return _copy(operation, source, isinstance(to, DeviceTensor), host=(to, source))
    if device is not None and given:
        [source] = given
        return _copy(operation, source, device.type == "cuda", host=(source,))
    here = [x for x in given if not isinstance(x, DeviceTensor) and x.dim()]
    indexes = func.overloadpacket in TAKE_INDICES
    if here and not indexes:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but found"
            f" {[tuple(x.shape) for x in there]} on cuda:0, {[tuple(x.shape) for x in here]} on cpu"
        )
    counts = indexes and any(x is not None and x.dtype == torch.bool for x in args[1])
    if func.overloadpacket in PRODUCTS:
        card.take_workspace()
    waits = func.overloadpacket in WAIT_FOR_VALUES or here or counts
    result = operation.launch()
    if func.overloadpacket in EMPTY:
        _content(result).fill_(GARBAGE)
    if waits:
        card.synchronize(card.stream.clock, why=str(func))
    return result


def launch_kernel(card, kernel, written, args):
    """Have the current stream do what is not PyTorch's.

    Args:
        card: the device.
        kernel: does it with tensors of the host.
        written: indices of arguments that are written.
        args: of the kernel.
    """
    return _Operation(card, kernel, args, {}, [args[index] for index in written]).launch()


def _on_host(card, func, args, kwargs):
    """What concerns the card only where memory is pinned."""
    packet = func.overloadpacket
    if kwargs.get("pin_memory"):
        assert packet is aten.empty, f"{func} of pinned memory"
        return card.pinned.empty(args[0], kwargs.get("dtype") or torch.get_default_dtype())
    if packet is aten.pin_memory:
        return card.pinned.empty(args[0].shape, args[0].dtype).copy_(args[0])
    if packet is aten.is_pinned:
        return card.pinned.of(args[0]) is not None
    result = func(*args, **kwargs)
    given = tensors_in((args, kwargs))
    if any(card.pinned.of(x) is not None for x in given):
        written = _written(func, args, kwargs)
        for tensor, writes in _accesses(given, written, tensors_in(result)):
            card.pinned.touch(tensor, writes=writes, what=str(func))
    return result


def _copy(operation, source, up, host):
    """Copy between host and device, or within the latter."""
    card = operation.card
    if isinstance(source, DeviceTensor) and up:
        return operation.launch()
    pinned = any(card.pinned.of(x) is not None for x in host if not isinstance(x, DeviceTensor))
    if not up and operation.func.overloadpacket is not aten.copy_:
        pinned = False  # memory of its own is not
    asynchronous = operation.argument("non_blocking")
    if not (pinned and asynchronous) and card.graph is not None:
        card.graph.forbid("a copy that waits, or is not from or to pinned memory")
    result = operation.launch(apart=True, to_host=not up)
    if up and asynchronous and not pinned:
        card.thread.tick()  # what is copied has been read
    elif not (pinned and asynchronous):
        card.synchronize(card.stream.clock, why=f"{operation.func} between host and device")
    return result


class _Operation:
    """What a stream is given to do."""

    def __init__(self, card, func, args, kwargs, written=None):
        self.card, self.func = card, func
        self._args, self._kwargs = args, kwargs
        self._given = tensors_in((args, kwargs))
        self._written = _written(func, args, kwargs) if written is None else tensors_in(written)
        self._name = getattr(func, "__name__", str(func)) if written is not None else str(func)

    def argument(self, name):
        """Return an argument of PyTorch's, however it was given."""
        if name in self._kwargs:
            return self._kwargs[name]
        places = {x.name: place for place, x in enumerate(self.func._schema.arguments)}
        place = places.get(name)
        return self._args[place] if place is not None and place < len(self._args) else None

    def launch(self, *, apart=False, to_host=False):
        """Do it, now or when it is replayed.

        Args:
            apart: whether results share no memory with arguments, as they are elsewhere.
            to_host: whether results are tensors of the host's.
        """
        card, capturing = self.card, self.card.graph is not None
        kernel = _KERNELS.get(self.func, self.func)
        call = _Call(kernel, mapped(_content, self._args), mapped(_content, self._kwargs))
        contents = [_content(x) for x in self._written]
        result = call.without_effect(contents) if capturing else call.first()
        if apart and not self._written:
            starts = {_start(x) for x in self._given}
            result = mapped(
                lambda x: x.clone() if isinstance(x, torch.Tensor) and _start(x) in starts else x,
                result,
            )
        call.result = result
        wrapped = mapped(functools.partial(self._wrap, to_host, {}), result)
        accesses = _accesses(self._given, self._written, tensors_in(wrapped))
        if accesses and capturing:
            card.graph.add(call, accesses, self._name)
            for tensor in tensors_in(wrapped):
                if not any(tensor is x for x in self._given):
                    _content(tensor).fill_(GARBAGE)  # it has not been computed
        elif accesses:
            stream = card.launch()
            for tensor, writes in accesses:
                memory = tensor.allocation if isinstance(tensor, DeviceTensor) else card.pinned
                content = _content(tensor)
                memory.access(stream, content, writes=writes, what=self._name)
        return wrapped

    def _wrap(self, to_host, made, x):
        """Return what callers get of a result.

        Args:
            to_host: whether it is one of the host's.
            made: allocations of other results.
            x: the result.
        """
        if not isinstance(x, torch.Tensor):
            return x
        for tensor in self._given:
            if _content(tensor) is x:
                return tensor
        if to_host:
            return x
        start = _start(x)
        for tensor in self._given:
            if isinstance(tensor, DeviceTensor) and _start(tensor) == start:
                return DeviceTensor(x, tensor.allocation, self.card)
        if start not in made:
            made[start] = Allocation(self.card, x)
        return DeviceTensor(x, made[start], self.card)


class _Call:
    """An operation with the tensors it reads and writes."""

    def __init__(self, kernel, args, kwargs):
        self._kernel, self._args, self._kwargs = kernel, args, kwargs
        self.result = None

    def first(self):
        return self._kernel(*self._args, **self._kwargs)

    def without_effect(self, written):
        """Return results of the right shapes; what is written stays as it was."""
        before = [x.clone() for x in written]
        result = self.first()
        for tensor, content in zip(written, before, strict=True):
            tensor.copy_(content)
        return result

    def again(self):
        for earlier, now in zip(tensors_in(self.result), tensors_in(self.first()), strict=True):
            if now.data_ptr() != earlier.data_ptr():
                earlier.copy_(now)


def leaves(tree):
    """What is in lists, tuples and so on; PyTorch's own way takes several times as long."""
    if isinstance(tree, (list, tuple)):
        return [leaf for branch in tree for leaf in leaves(branch)]
    if isinstance(tree, dict):
        return [leaf for branch in tree.values() for leaf in leaves(branch)]
    if isinstance(tree, QuantizedTensor):
        return [*tree.tensors]
    return [tree]


def tensors_in(tree):
    return [leaf for leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]


def mapped(change, tree):
    """Change all that is in lists, tuples and so on."""
    if isinstance(tree, (list, tuple)):
        branches = [mapped(change, branch) for branch in tree]
        return branches if isinstance(tree, list) else tuple(branches)
    if isinstance(tree, dict):
        return {name: mapped(change, branch) for name, branch in tree.items()}
    if isinstance(tree, QuantizedTensor):
        return tree.map(change)
    return change(tree)


def _content(x):
    if isinstance(x, DeviceTensor):
        return x.content
    return torch.device("cpu") if isinstance(x, torch.device) else x


def _start(tensor):
    content = _content(tensor)
    return None if content.is_mkldnn else content.untyped_storage().data_ptr()


def _written(func, args, kwargs):
    """Arguments that are written."""
    written = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append(args[place] if place < len(args) else kwargs.get(argument.name))
    return tensors_in(written)


def _accesses(given, written, made):
    """Tensors, each with whether it is written; none if nothing but views is made."""
    ids, known = {id(x) for x in written}, {_start(x) for x in given}
    fresh = [x for x in made if _start(x) not in known]
    if made and not written and not fresh:
        return []
    return [*((x, id(x) in ids) for x in given), *((x, True) for x in fresh)]


def _efficient_attention(q, k, v, bias, compute_log_sumexp, dropout=0.0, is_causal=False, *, scale):
    """What the kernel of that name returns, whose log-sum-exp is padded."""
    assert bias is None
    assert compute_log_sumexp
    assert not dropout
    assert q.shape[1] <= 65_535, "a grid is no wider"
    values, lse = aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, is_causal=is_causal, scale=scale
    )
    padded = torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=float("nan"))
    return values, padded, torch.zeros(()), torch.zeros(())


_KERNELS = {aten._scaled_dot_product_efficient_attention.default: _efficient_attention}
