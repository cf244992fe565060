"""Lets megatron-core 0.16 run on CPUs with gloo. Call `before_import` first, then import megatron, then `after_import`.

Megatron takes a CUDA device for granted in a few places that have nothing to do with its mathematics: where tensors
are made, streams and events, generators, and the names of tensor types. Each is given a CPU meaning here. What gloo
lacks is added: all-gather and reduce-scatter of tensors of different sizes, and sizes that are tensors in all-to-all.
"""

import contextlib
import functools

import torch
import torch.distributed as dist

CPU = torch.device("cpu")
MAKERS = (
    "zeros", "ones", "empty", "full", "tensor", "arange", "rand", "randn", "as_tensor", "zeros_like", "empty_like",
    "ones_like",
)  # fmt: skip


class Stream:
    """Work on a CPU is done when its call returns: there is nothing to wait for."""

    def __init__(self, *_, **__):
        pass

    def wait_stream(self, *_):
        pass

    wait_event = synchronize = wait_stream

    def record_event(self, *_):
        return Event()

    def __eq__(self, other):
        return isinstance(other, Stream)

    def __hash__(self):
        return 0


class Event(Stream):
    def record(self, *_):
        pass

    wait = record

    def query(self):
        return True


def before_import():
    cuda = torch.cuda
    cuda.current_device = lambda: CPU
    for name in ("synchronize", "empty_cache", "manual_seed"):
        setattr(cuda, name, lambda *_, **__: None)  # torch's compiler wants a function of its own for each name
    cuda.Stream, cuda.Event = Stream, Event
    cuda.stream = lambda _: contextlib.nullcontext()
    cuda.current_stream, cuda.default_stream = (lambda *_: Stream()), (lambda *_: Stream())
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    for kind in (torch.Tensor, torch.nn.Module):
        kind.cuda = lambda self, *_, **__: self
    torch.Tensor.record_stream = lambda self, _: None
    torch.compile = lambda function, **_: function  # of fusions that are off; the compiler takes seconds to import
    for name in MAKERS:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.Tensor.type = _named_as_cuda(torch.Tensor.type)
    dist.all_to_all_single = _with_plain_splits(dist.all_to_all_single)
    dist.all_gather = _of_different_sizes(dist.all_gather)
    dist.reduce_scatter = _reduce_scatter


def after_import():
    import megatron.core.tensor_parallel.random as generators

    generators._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    generators._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)


def _on_cpu(make):
    @functools.wraps(make)
    def made(*args, **kwargs):
        if "cuda" in str(kwargs.get("device")):
            kwargs["device"] = CPU
        return make(*args, **kwargs)

    return made


def _named_as_cuda(type_of):
    """Megatron's optimizers know the types torch.cuda.FloatTensor, torch.cuda.BFloat16Tensor, ... only."""

    @functools.wraps(type_of)
    def named(self, *args, **kwargs):
        found = type_of(self, *args, **kwargs)
        return found.replace("torch.", "torch.cuda.", 1) if isinstance(found, str) else found

    return named


def _with_plain_splits(all_to_all):
    """Megatron leaves sizes in CPU tensors where it could not copy them to the host by a side stream."""

    def plain(sizes):
        return None if sizes is None else [int(size) for size in sizes]

    @functools.wraps(all_to_all)
    def called(output, input, output_split_sizes=None, input_split_sizes=None, **kwargs):
        return all_to_all(output, input, plain(output_split_sizes), plain(input_split_sizes), **kwargs)

    return called


def _of_different_sizes(all_gather):
    """Gather tensors that differ in their first dimension as if they were as long as the longest."""

    @functools.wraps(all_gather)
    def called(outputs, tensor, group=None, **kwargs):
        longest = max(map(len, outputs))
        if all(len(output) == longest for output in outputs):
            return all_gather(outputs, tensor, group=group, **kwargs)
        padded = [output.new_empty(longest, *output.shape[1:]) for output in outputs]
        filled = torch.cat([tensor, tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])])
        all_gather(padded, filled, group=group, **kwargs)
        for output, whole in zip(outputs, padded, strict=True):
            output.copy_(whole[: len(output)])
        return None

    return called


def _reduce_scatter(output, inputs, group=None):
    total = torch.cat(inputs)
    dist.all_reduce(total, group=group)
    output.copy_(total.split([len(each) for each in inputs])[dist.get_rank(group)])
