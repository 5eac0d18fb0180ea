"""Data parallel training: the gradients of all ranks added up by torch.distributed, which learns of its peers by MPI.

gloo where training computes on processors; nccl where each rank has a GPU of its own, gloo over the processor where ranks share
one, which nccl refuses.
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined] # torch does not mark it as exported
from torch.nn import Parameter

from pipeline.ranks import Ranks, gpus

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for another one that lives but does not answer. The death of one is noticed at once."""

SumGradients = Callable[[Iterable[Parameter], Tensor], Tensor]
"""Replaces the gradients of parameters by their sums over ranks, and returns the sum of a float64 scalar."""


def nothing_to_add(parameters: Iterable[Parameter], value: Tensor) -> Tensor:
    """The gradients of a process alone are the sum."""
    return value


@contextmanager
def gradient_sum(ranks: Ranks, device: str = "cpu") -> Iterator[SumGradients]:
    """What adds up gradients over ranks while the block runs; each rank must come here.

    Args:
        ranks: who adds.
        device: what this rank computes on.
    """
    if ranks.size == 1:
        yield nothing_to_add
        return
    backend, on = _way(ranks, device)
    dist.init_process_group(backend, store=_store(ranks), rank=ranks.rank, world_size=ranks.size, timeout=PATIENCE)

    def summed(parameters: Iterable[Parameter], value: Tensor) -> Tensor:
        return _summed(parameters, value, on)

    try:
        yield summed
    finally:
        dist.destroy_process_group()


def _way(ranks: Ranks, device: str) -> tuple[str, str]:
    """Which backend adds, and where: the same on all ranks."""
    found = gpus(device, ranks)
    apart = None not in found and len(set(found)) == len(found) and dist.is_nccl_available()
    return ("nccl", device) if apart else ("gloo", "cpu")


def _summed(parameters: Iterable[Parameter], value: Tensor, on: str) -> Tensor:
    """One message per step, in double precision: the order of ranks then leaves no trace in single precision."""
    found = list(parameters)
    # a rank without a structure in this minibatch has no gradients
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in found]
    flat = torch.cat([value.reshape(1), *(g.reshape(-1).to(torch.float64) for g in own)]).to(on)
    dist.all_reduce(flat)
    flat = flat.to(value.device)
    for parameter, total in zip(found, torch.split(flat[1:], [g.numel() for g in own]), strict=True):
        parameter.grad = total.view_as(parameter).to(parameter.dtype)
    return flat[0]


def _store(ranks: Ranks) -> TCPStore:
    """Where ranks find each other: at rank 0, on a port nobody else uses.

    On one node all of it stays on the loopback interface, where other machines cannot connect.
    """
    hosts = ranks.gather(socket.gethostname())
    address = "127.0.0.1"
    if len(set(hosts)) == 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    else:
        address = socket.gethostbyname(hosts[0])
    if ranks.first:
        listener = socket.create_server((address, 0))
        port = ranks.broadcast(listener.getsockname()[1])
        return TCPStore(
            address,
            port,
            ranks.size,
            is_master=True,
            timeout=PATIENCE,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
    return TCPStore(address, ranks.broadcast(0), ranks.size, timeout=PATIENCE)
