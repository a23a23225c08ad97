"""Private names of libraries that omni relies on: each in one module, and as it was when that module was written.

When a test here fails after a library was upgraded: read what has changed, correct the module that owns the name, and
write the new digest down.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SOURCES = (ROOT / "src" / "omni_core", *sorted((ROOT / "plugins").glob("*/src/*")))
# How the libraries are called where they are imported.
LIBRARIES = {"torch": "torch", "dist": "torch.distributed", "diffusers": "diffusers", "subprocess": "subprocess"}
# With which the digests were made; older ones may differ and are supported, newer ones are to be looked at.
READ_IN = {"torch": "2.13.0", "diffusers": "0.42.1"}

# Private names that are reached from a module of a library, by the module of ours that owns them.
OWNERS = {
    "omni_core.wire.start": {
        "subprocess._args_from_interpreter_flags",
    },
    "omni_core.worker.parallel.process_groups": {
        "torch.distributed.distributed_c10d._abort_process_group",
        "torch.distributed.distributed_c10d._get_default_store",
    },
    "omni_core.worker.task.dispatch_modes": {
        "torch._C._TorchDispatchModeKey",
        "torch._C._get_dispatch_mode",
        "torch._C._get_dispatch_stack_at",
        "torch._C._get_function_stack_at",
        "torch._C._len_torch_dispatch_stack",
        "torch._C._len_torch_function_stack",
        "torch._C._pop_torch_dispatch_stack",
        "torch._C._pop_torch_function_stack",
        "torch._C._push_on_torch_dispatch_stack",
        "torch._C._push_on_torch_function_stack",
    },
    "omni_core.worker.task.random_draws": {
        "torch._C._ExcludeDispatchKeyGuard",
        "torch._C._dispatch_key_parse",
        "torch._C._dispatch_tls_set_dispatch_key_included",
        "torch._C._jit_get_all_schemas",
        "torch._ops._HIGHER_ORDER_OP_DEFAULT_FALLTHROUGH_DISPATCH_KEYS",
        "torch._ops._higher_order_ops",
    },
    "omni_core.worker.task.torch_state": {
        "torch._C._InferenceMode",
    },
}
# Private names of objects, and of classes that are imported: where, and what has them.
MEMBERS = {
    "omni_core.worker.parallel.process_groups": {
        "torch.distributed:ProcessGroup._get_backend",
    },
    "omni_core.worker.pipeline.diffusers_hooks": {
        "diffusers.hooks.hooks:HookRegistry",
        "diffusers.hooks.hooks:StateManager",
        "diffusers.hooks.hooks:ModelHook",
    },
    "omni_exec_torchrun.agent": {
        "torch.distributed.elastic.rendezvous.dynamic_rendezvous:_RendezvousExitOp",
        "torch.distributed.elastic.rendezvous.dynamic_rendezvous:DynamicRendezvousHandler._stop_heartbeats",
        "torch.distributed.elastic.agent.server.local_elastic_agent:LocalElasticAgent._start_workers",
        "torch.distributed.elastic.agent.server.local_elastic_agent:LocalElasticAgent._monitor_workers",
        "torch.distributed.elastic.agent.server.local_elastic_agent:LocalElasticAgent._shutdown",
        "torch.distributed.elastic.agent.server.api:SimpleElasticAgent._restart_workers",
        "torch.distributed.elastic.agent.server.api:SimpleElasticAgent._rendezvous",
    },
}
# Digests of the source of those that are written in Python.
DIGESTS = {
    "diffusers.hooks.hooks:HookRegistry": "a0cd80dc7ca3",
    "diffusers.hooks.hooks:ModelHook": "9f7de23984b0",
    "diffusers.hooks.hooks:StateManager": "79cc7e39848c",
    "torch.distributed.distributed_c10d._abort_process_group": "f226920f862c",
    "torch.distributed.distributed_c10d._get_default_store": "4f987107c62d",
    "torch.distributed.elastic.agent.server.api:SimpleElasticAgent._rendezvous": "f0c843d67c04",
    "torch.distributed.elastic.agent.server.api:SimpleElasticAgent._restart_workers": "7de319cd35c6",
    "torch.distributed.elastic.agent.server.local_elastic_agent:LocalElasticAgent._monitor_workers": "4ba1c04fe76b",
    "torch.distributed.elastic.agent.server.local_elastic_agent:LocalElasticAgent._shutdown": "615c6a545ee6",
    "torch.distributed.elastic.agent.server.local_elastic_agent:LocalElasticAgent._start_workers": "3a15b68937f5",
    "torch.distributed.elastic.rendezvous.dynamic_rendezvous:DynamicRendezvousHandler._stop_heartbeats": "9cf2cbcd6d21",
    "torch.distributed.elastic.rendezvous.dynamic_rendezvous:_RendezvousExitOp": "bb8c30ecbea8",
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for source in SOURCES:
        for file in sorted(source.rglob("*.py")):
            name = ".".join([source.name, *file.relative_to(source).with_suffix("").parts])
            yield name.removesuffix(".__init__"), ast.parse(file.read_text(encoding="utf-8"))


def private_names(tree: ast.Module) -> Iterator[str]:
    """Yield the full name of each private thing that is reached from a module of a library."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        parts: list[str] = []
        inner: ast.expr = node
        while isinstance(inner, ast.Attribute):
            parts.insert(0, inner.attr)
            inner = inner.value
        is_private = parts[-1].startswith("_") and not parts[-1].startswith("__") and parts[-1] not in ("_C", "_ops")
        if is_private and isinstance(inner, ast.Name) and inner.id in LIBRARIES:
            yield ".".join([LIBRARIES[inner.id], *parts])


def test_each_private_name_has_one_owner() -> None:
    found: dict[str, set[str]] = {}
    for name, tree in modules():
        if names := set(private_names(tree)):
            found[name] = names
    assert found == OWNERS


def look_up(name: str) -> Any:
    if ":" not in name:
        parts = name.split(".")
        found: Any = importlib.import_module(parts[0])
        for index, part in enumerate(parts[1:], 1):
            if not hasattr(found, part):
                importlib.import_module(".".join(parts[: index + 1]))
            found = getattr(found, part)
        return found
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


NAMES = sorted({name for names in (*OWNERS.values(), *MEMBERS.values()) for name in names})


@pytest.mark.parametrize("name", NAMES)
def test_it_is_as_it_was(name: str) -> None:
    found = look_up(name)
    library = name.replace(":", ".").partition(".")[0]
    if library not in READ_IN or not (inspect.isfunction(found) or inspect.isclass(found)):
        return  # Python's own, or written in C: that it is there is all that can be told
    try:
        source = inspect.getsource(found)
    except (OSError, TypeError):
        return
    installed = Version(importlib.metadata.version(library).partition("+")[0])
    if installed < Version(READ_IN[library]):
        pytest.skip(f"{library} {installed} is older than {READ_IN[library]}, in which it was read")
    assert hashlib.sha256(source.encode()).hexdigest()[:12] == DIGESTS.get(name), f"read {name} again"
