"""What is wrong with an executor's class is told when it is selected, with the name of the method or attribute."""

from __future__ import annotations

import functools
import sys
from concurrent.futures import Future
from typing import Any

import pydantic
import pytest

from omni_core import DiffusionEngine, OmniDiffusionConfig
from omni_core.errors import ConfigError, PluginError
from omni_core.executor import OPTIONS_TO_DECLARE, DiffusionExecutor
from omni_core.executors.inline import InlineExecutor
from omni_core.hookspecs import ExecutorSpec, hookimpl
from omni_core.plugins import PluginRegistry


class Sound(DiffusionExecutor):
    supported_options = frozenset({"compile"})

    def _init_executor(self): ...
    def collective_rpc(self, method, timeout=None, args=(), kwargs=None, unique_reply_rank=None): ...
    def execute_model(self, requests): ...
    def check_health(self): ...
    def shutdown(self): ...


def resolve(cls: Any) -> Any:
    return PluginRegistry([], disabled=()).resolve_executor(cls)


def with_(**members: Any) -> type:
    return type("Wrong", (Sound,), {"__module__": __name__, **members})


async def coroutine(self, requests): ...


def generator(self, requests):
    yield


def number_of_replicas(self):
    return 1


@pytest.mark.parametrize(
    ("members", "words"),
    [
        # signatures, as the engine calls them
        ({"execute_model": lambda self: []}, r"execute_model\(self\) must take \(requests\)"),
        ({"execute_model": lambda self, requests, seed: []}, "execute_model.*'seed'"),
        (
            {"collective_rpc": lambda self, method: []},
            r"must take \(method, timeout, args, kwargs, unique_reply_rank\)",
        ),
        ({"collective_rpc": lambda self, method, timeout, args, kwargs, unique_reply_rank: []}, "left out"),
        ({"collective_rpc": lambda self, method, limit=None, args=(), kw=None, rank=None: []}, "by keyword"),
        ({"collective_rpc": lambda self, *args: []}, "collective_rpc.*by keyword"),
        ({"check_health": lambda: None}, r"check_health\(\) must take \(\)"),
        ({"check_health": lambda self, timeout: None}, "check_health.*'timeout'"),
        ({"shutdown": lambda self, wait: None}, "shutdown.*'wait'"),
        ({"_init_executor": lambda self, config: None}, "_init_executor.*'config'"),
        ({"__init__": lambda self, config: None}, "__init__.*must take .config, context."),
        ({"execute_step": lambda self, scheduler_output: None}, "execute_step.*replica, scheduler_output"),
        ({"interrupt": lambda self: None}, r"interrupt.*must take \(replica\)"),
        ({"is_ready": lambda self: True}, r"is_ready.*must take \(replica\)"),
        ({"begin_rpc": lambda self, method: None}, "begin_rpc.*unique_reply_rank"),
        ({"request_queued": lambda self: None}, "request_queued.*request"),
        ({"request_ended": lambda self, request_id: None}, "request_ended.*error"),
        ({"on_change": lambda self: None}, "on_change.*listener"),
        ({"describe_pipeline": lambda self, request: None}, "describe_pipeline.*'request'"),
        ({"worker_stats": lambda self, replica: []}, "worker_stats.*'replica'"),
        ({"check_health": staticmethod(lambda self: None)}, "check_health.*'self'"),
        # what is no method
        ({"check_health": True}, "check_health is True and must be a method"),
        ({"execute_model": None}, "execute_model is None and must be a method"),
        ({"is_ready": property(lambda self: True)}, "is_ready is property and must be a method"),
        ({"execute_model": coroutine}, "execute_model is `async def`"),
        ({"execute_model": generator}, "execute_model contains `yield`"),
        # properties
        ({"num_replicas": number_of_replicas}, "num_replicas is a method and must be a property"),
        ({"fault": lambda self: None}, "fault is a method and must be a property"),
        ({"name": lambda self: "x"}, "name is a method"),
        # flags
        ({"runs_diffusion_worker": 1}, "runs_diffusion_worker is 1 and must be True or False"),
        ({"can_interrupt": "yes"}, "can_interrupt is 'yes'"),
        ({"accepts_pipeline": property(lambda self: True)}, "accepts_pipeline is property"),
        ({"can_interrupt": None}, "can_interrupt is None"),
        # options
        ({"supported_options": frozenset({"data_parallel_sise"})}, "'data_parallel_sise'.*mean 'data_parallel_size'"),
        ({"supported_options": {"steps"}}, "'steps', which is no option.*compile"),
        ({"supported_options": {"compile", 3}}, "supported_options has 3"),
        ({"supported_options": "compile"}, "supported_options is 'compile' and must be a set"),
        ({"supported_options": ["compile"]}, "supported_options is .'compile'. and must be a set"),
        ({"supported_options": None}, "supported_options is None"),
        ({"supported_options": {"compile": True}}, "supported_options is dict"),
        ({"supported_options": property(lambda self: frozenset())}, "supported_options is property"),
    ],
)
@pytest.mark.parametrize("selected", ["by class", "by name"])
def test_a_class_that_cannot_be_called_as_the_contract_says(
    members: dict[str, Any], words: str, selected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = with_(**members)
    if selected == "by class":
        with pytest.raises(PluginError, match=words) as caught:
            DiffusionEngine(OmniDiffusionConfig(executor_class=cls))
        assert f"{__name__}:Wrong" in str(caught.value)
        return
    monkeypatch.setitem(sys.modules, "wrong_executor", type("M", (), {"Wrong": cls}))

    class Plugin:
        @hookimpl
        def omni_register_executors(self):
            return [ExecutorSpec("wrong", "wrong_executor:Wrong")]

    registry = PluginRegistry([], disabled=())
    registry.register(Plugin())
    with pytest.raises(PluginError, match=words) as caught:
        registry.resolve_executor("wrong")
    assert "It is the executor 'wrong' of the plugin 'Plugin'" in str(caught.value)


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"supported_options": OPTIONS_TO_DECLARE},
        {"supported_options": set()},
        {"supported_options": {"compile": 1}.keys()},
        {"num_replicas": 1, "name": "sound"},
        {"name": property(lambda self: "sound")},
        {"collective_rpc": lambda self, method, timeout=None, args=(), kwargs=None, unique_reply_rank=None, **more: []},
        {"collective_rpc": lambda self, method, *args, **kwargs: []},
        {"check_health": staticmethod(lambda: None)},
        {"check_health": functools.partialmethod(lambda self, more: None, 3)},
        {"execute_step": lambda self, replica, output: Future()},
        {"__init__": lambda self, *args, **kwargs: None},
    ],
)
def test_what_the_contract_allows(members: dict[str, Any]) -> None:
    cls = with_(**members)
    assert resolve(cls).cls is cls


def test_the_executor_that_ships_with_the_core_is_sound() -> None:
    assert resolve(InlineExecutor).cls is InlineExecutor


class Options(pydantic.BaseModel):
    servers: list[str] = []

    @pydantic.field_validator("servers")
    @classmethod
    def _find(cls, servers: list[str]) -> list[str]:
        if "down" in servers:
            raise ConnectionError("no route to host")
        if "ours" in servers:
            raise ConfigError("There is no server 'ours'.")
        if "bad" in servers:
            raise ValueError("bad server")
        return servers


@pytest.mark.parametrize(
    ("server", "kind", "words"),
    [
        ("down", PluginError, "Options of the executor it raised ConnectionError: no route to host"),
        ("ours", ConfigError, "no server 'ours'"),
        ("bad", ConfigError, "executor_options of it: servers: bad server"),
    ],
)
def test_an_options_model_that_raises(server: str, kind: type[Exception], words: str) -> None:
    from omni_core.plugins.selection import ResolvedExecutor

    with pytest.raises(kind, match=words):
        ResolvedExecutor(Sound, Options, None, None, "it").validate_options({"servers": [server]})
