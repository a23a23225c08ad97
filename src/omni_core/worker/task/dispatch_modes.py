"""The modes on the running thread's two stacks, such as `with torch.device(…)` and `FlopCounterMode`.

Torch has no public way to take them off and put them back. Read in torch 2.13 (`torch/overrides.py`,
`torch/utils/_python_dispatch.py`); `tests/test_private_names.py` says when that changes.
"""

from __future__ import annotations

from typing import Any

import torch


def function_modes() -> list[Any]:
    """Return the modes that see calls of torch's functions, the outermost first."""
    return [torch._C._get_function_stack_at(index) for index in range(torch._C._len_torch_function_stack())]


def dispatch_modes() -> list[Any]:
    """Return the modes that see operators, the outermost first."""
    return [torch._C._get_dispatch_stack_at(index) for index in range(torch._C._len_torch_dispatch_stack())]


def has_dispatch_modes() -> bool:
    """Whether any mode sees operators."""
    return bool(torch._C._len_torch_dispatch_stack())


def is_traced() -> bool:
    """Whether operators are recorded instead of run."""
    if not has_dispatch_modes():
        return False
    kinds = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(kind) is not None for kind in (kinds.FAKE, kinds.PROXY, kinds.FUNCTIONAL))


def put_in(functions: list[Any], dispatches: list[Any]) -> None:
    """Make these the running thread's modes, in place of those that it has. Some put themselves below others."""
    while torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()
    while torch._C._len_torch_dispatch_stack():
        torch._C._pop_torch_dispatch_stack(None)
    for mode in functions:
        torch._C._push_on_torch_function_stack(mode)
    for mode in dispatches:
        torch._C._push_on_torch_dispatch_stack(mode)
