"""A guard for code that is to run on a GPU, where there is none.

On torch's ``meta`` device tensors have shapes and no numbers: asking for one, as every transfer to the host does, raises.
But ``meta`` lets many operations mix it with the CPU, which a GPU refuses: the guard does so too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")


class OneDevice(TorchDispatchMode):
    """Within it every tensor that an operation takes or gives, backward passes included, is on the ``meta`` device."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors((args, kwargs, result)):
            assert tensor.device == META, f"{func} takes or gives a {tuple(tensor.shape)} tensor on {tensor.device}"
        return result


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
