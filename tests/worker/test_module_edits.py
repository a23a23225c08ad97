"""What one request puts into the shared modules is there for it alone."""

from __future__ import annotations

from typing import Any

import torch

from omni_core.worker.pipeline.module_edits import EditableParts, ModuleEdits, parts_of


class Attention(torch.nn.Module):
    def __init__(self, processor: Any) -> None:
        super().__init__()
        self.processor = processor


def test_processors_and_hooks_are_kept_apart() -> None:
    first, second = Attention("plain"), Attention(torch.nn.Linear(1, 1))
    own = second.processor
    model = torch.nn.Sequential(first, second)
    theirs = model.register_forward_hook(lambda *_: None)
    parts = EditableParts(parts_of([model, model]))
    one, other = ModuleEdits(parts), ModuleEdits(parts)

    one.swap_in()
    first.processor = "perturbed"
    second._modules.pop("processor")
    second.processor = "stored"
    handle = first.register_forward_hook(lambda *_: None)
    one.swap_out()
    assert one.is_active
    assert (first.processor, second.processor) == ("plain", own)
    assert not first._forward_hooks
    assert list(model._forward_hooks) == [theirs.id]

    other.swap_in()
    assert (first.processor, second.processor) == ("plain", own)
    other.swap_out()
    assert not other.is_active

    one.swap_in()
    assert (first.processor, second.processor) == ("perturbed", "stored")
    assert list(first._forward_hooks) == [handle.id]
    handle.remove()
    first.processor = "plain"
    second.processor = own
    one.swap_out()
    assert not one.is_active
    assert (first.processor, second.processor) == ("plain", own)
    assert "processor" in second._modules
