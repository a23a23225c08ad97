"""Every row of the table in docs/MIGRATION.md: the new form runs, and the old one does what the last column says."""

from __future__ import annotations

import ast
import contextlib
import copy
import pickle
import re
import subprocess
import sys
import textwrap
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import omni_core
from omni_core import (
    DiffusionEngine,
    DiffusionExecutor,
    OmniDiffusionConfig,
    OmniDiffusionRequest,
    OmniRequestOutput,
)
from omni_core.compat import vllm_omni
from omni_core.errors import (
    ConfigError,
    EngineClosedError,
    ExecutorError,
    ExecutorNotFoundError,
    OmniError,
    RequestError,
)
from omni_core.executors.inline import InlineExecutor

PAGE = Path(__file__).parents[1] / "docs" / "MIGRATION.md"
ERRORS = {
    "AttributeError": AttributeError,
    "ImportError": ImportError,
    "ConfigError": ConfigError,
    "ExecutorNotFoundError": ExecutorNotFoundError,
}


@dataclass(frozen=True)
class Row:
    """One row of the table: the old form, what to write instead, and what becomes of the old form."""

    old: str
    new: tuple[str, ...]
    outcome: str

    @property
    def code(self) -> str:
        """The code in the first column."""
        return spans(self.old)[0]


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def read_table() -> list[Row]:
    engine, _, _ = PAGE.read_text(encoding="utf-8").partition("\n## From a server\n")
    lines = [line for line in engine.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["vLLM-Omni", "write here", "the old form"]
    return [Row(old, tuple(spans(new)), outcome) for old, new, outcome in cells[2:]]


ROWS = read_table()
# What else is to be seen of each row; filled by the functions below, which are named for nothing but their order.
PROOFS: dict[str, Callable[[World, Any], None]] = {}


def proves(*rows: str) -> Callable[[Callable[[World, Any], None]], Callable[[World, Any], None]]:
    def remember(function: Callable[[World, Any], None]) -> Callable[[World, Any], None]:
        for row in rows:
            assert row not in PROOFS
            PROOFS[row] = function
        return function

    return remember


class SquareExecutor(DiffusionExecutor):
    """An executor of a user's own: the five methods."""

    def _init_executor(self) -> None:
        self.is_up = True

    def execute_model(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        return [OmniRequestOutput(one.request_id, one.seed, "finished", {"images": ["a square"]}) for one in requests]

    def collective_rpc(
        self, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None, unique_reply_rank: Any = None
    ) -> Any:
        return [method] if unique_reply_rank is None else method

    def check_health(self) -> None:
        if not self.is_up:
            raise ExecutorError("The square is down.")

    def shutdown(self) -> None:
        self.is_up = False


class World:
    """What the code in the table talks about."""

    def __init__(self, engine: DiffusionEngine) -> None:
        self.engine = engine
        self.names: dict[str, Any] = {
            "DiffusionEngine": DiffusionEngine,
            "OmniDiffusionConfig": OmniDiffusionConfig,
            "MyExecutor": SquareExecutor,
            "engine": engine,
            "config": OmniDiffusionConfig(),
            "request_id": "nobody",
            "message": {"type": "rpc", "method": "sleep", "kwargs": {"level": 1}},
            "method": "stats",
            "timeout": 30.0,
            "args": (),
            "kwargs": None,
            "unique_reply_rank": 0,
        }

    @property
    def requests(self) -> list[OmniDiffusionRequest]:
        return [OmniDiffusionRequest(prompt="a red seven", seed=seed, num_inference_steps=2) for seed in (1, 2)]

    def run(self, code: str) -> Any:
        """Run it; return what it evaluates to, if it does. An engine that it makes is closed by `close_others`."""
        names = {**self.names, "requests": self.requests}
        try:
            ast.parse(code, mode="eval")
        except SyntaxError:
            exec(code, names)
            return None
        return eval(code, names)


@pytest.fixture(scope="module")
def shared_engine() -> Iterator[DiffusionEngine]:
    with DiffusionEngine(OmniDiffusionConfig()) as engine:
        yield engine


@pytest.fixture
def world(shared_engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch, request: Any) -> Iterator[World]:
    package = types.ModuleType("my_package")
    package.MyExecutor = SquareExecutor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_package", package)
    row = request.node.callspec.params.get("row") if hasattr(request.node, "callspec") else None
    if row is not None and "engine.close()" in row.new:
        with DiffusionEngine(OmniDiffusionConfig()) as engine:
            yield World(engine)
    else:
        yield World(shared_engine)
        shared_engine.wake_up()


@contextlib.contextmanager
def closing(value: Any) -> Iterator[Any]:
    try:
        yield value
    finally:
        if isinstance(value, DiffusionEngine):
            value.close()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.old)
def test_row(row: Row, world: World) -> None:
    works, classes = row.outcome.startswith("works"), spans(row.outcome)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if works:
            with closing(world.run(row.code)) as result:
                PROOFS[row.old](world, result)
            warned = [str(one.message) for one in caught if issubclass(one.category, DeprecationWarning)]
            warned = [text for text in warned if "docs/MIGRATION.md" in text]
            assert bool(warned) == bool(classes)
            assert all(new in text for text in warned for new in row.new)
            assert all(one.filename != vllm_omni.__file__ for one in caught)  # the line that is to be changed
        else:
            with pytest.raises(ERRORS[classes[0]]) as error:
                PROOFS[row.old](world, None) if row.old in PROOFS else world.run(row.code)
            assert isinstance(error.value, OmniError)
            told = str(error.value).replace("'", '"')
            assert [new for new in row.new if new not in told] == []
    for new in row.new:
        with closing(world.run(new)):
            pass


def test_every_row_that_works_has_a_proof_and_every_proof_a_row() -> None:
    assert len(ROWS) == len({row.old for row in ROWS}) >= 20
    assert set(PROOFS) <= {row.old for row in ROWS}
    assert [row.old for row in ROWS if row.outcome.startswith("works") and row.old not in PROOFS] == []


def test_every_name_that_is_refused_stands_in_the_table() -> None:
    text = " ".join(row.old for row in ROWS)
    wanted = {f"engine.{name}" for name in vllm_omni.OF_ENGINE} | {"engine.scheduler.mq", "engine.scheduler.result_mq"}
    wanted |= {f"from {module} import {name}" for module, names in vllm_omni.IMPORTED.items() for name in names}
    # Not written out: an old engine module that held the scheduler of scheduler.py.
    wanted.discard("from omni_core.engine.engine import scheduler")
    assert [one for one in sorted(wanted) if one not in text] == []


# What works.


@proves("`DiffusionEngine(config)`", "`DiffusionEngine.make_engine(config)`")
def an_engine_is_made(world: World, result: Any) -> None:
    assert type(result) is DiffusionEngine
    [first, second] = result.step(world.requests)
    assert (first.finish_reason, second.finish_reason) == ("finished", "finished")


@proves("`engine.step(requests)`")
def one_output_per_request(world: World, result: Any) -> None:
    assert [output.seed for output in result] == [1, 2]
    assert all(len(output.images) == 1 for output in result)
    [alone] = world.engine.step(world.requests[:1])  # a list for one request too
    assert alone.finish_reason == "finished"


@proves("`engine.abort(request_id)`")
def abort_ends_requests_that_run(world: World, result: Any) -> None:
    assert result is None  # of an id that nobody has
    for several in (False, True):
        handle = world.engine.submit(OmniDiffusionRequest(prompt="a red seven", num_inference_steps=5000))
        for event in handle.events(timeout=60):
            if event.kind == "step":
                world.engine.abort([handle.request_id, "nobody"] if several else handle.request_id)
        assert handle.result(30).finish_reason == "aborted"
        assert handle.result(30).metrics.num_steps < 5000


@proves("`engine.collective_rpc(method, timeout, args, kwargs, unique_reply_rank)`")
def one_reply_or_one_per_rank(world: World, result: Any) -> None:
    assert result.calls >= 0
    assert len(world.engine.collective_rpc("stats")) == 1


@proves("`engine.check_health()`")
def health_is_told(world: World, result: Any) -> None:
    assert result is None
    with DiffusionEngine(OmniDiffusionConfig(executor_class=SquareExecutor)) as engine:
        engine.executor.is_up = False  # type: ignore[attr-defined]
        with pytest.raises(ExecutorError):
            engine.check_health()


@proves("`engine.executor`")
def the_executor_is_there(world: World, result: Any) -> None:
    assert isinstance(result, DiffusionExecutor)
    assert [output.finish_reason for output in result.execute_model(world.requests)] == ["finished", "finished"]


@proves("`engine.close()`")
def it_is_closed(world: World, result: Any) -> None:
    with pytest.raises(EngineClosedError):
        world.engine.step(world.requests)
    world.engine.close()


@proves("`engine.scheduler.add_req(requests)`")
def the_same_pictures_as_step(world: World, result: Any) -> None:
    expected = world.engine.step(world.requests)
    assert [one.images[0].tobytes() for one in result] == [one.images[0].tobytes() for one in expected]


@proves("`DiffusionEngine._get_executor_class()`")
def the_class_of_the_default(world: World, result: Any) -> None:
    assert result is InlineExecutor
    config = OmniDiffusionConfig(executor_class=SquareExecutor)
    assert DiffusionEngine._get_executor_class(config) is SquareExecutor


# What fails, where the first column alone does not show it.


@proves("a `_get_executor_class` of your own")
def an_engine_of_ones_own(world: World, result: Any) -> None:
    class MyEngine(DiffusionEngine):
        @staticmethod
        def _get_executor_class() -> type[DiffusionExecutor]:  # type: ignore[override]
            return SquareExecutor

    MyEngine(OmniDiffusionConfig())


@proves('`OmniDiffusionConfig(executor_class="my_package.MyExecutor")`')
def a_path_with_a_dot(world: World, result: Any) -> None:
    DiffusionEngine(world.run('OmniDiffusionConfig(executor_class="my_package.MyExecutor")'))


@pytest.mark.parametrize("name", ["_get_executor_class", "_launch_workers", "_make_client"])
def test_an_engine_changed_from_outside_is_refused_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiffusionEngine, name, lambda *_: SquareExecutor, raising=False)
    with pytest.raises(ConfigError, match=f"DiffusionEngine has a {name} of its own") as caught:
        DiffusionEngine(OmniDiffusionConfig())
    assert "executor_class=MyExecutor" in str(caught.value)


def test_an_engine_with_further_methods_is_none_of_these() -> None:
    class MyEngine(DiffusionEngine):
        def draw(self) -> list[OmniRequestOutput]:
            return self.step([OmniDiffusionRequest(prompt="x")])

    with MyEngine(
        OmniDiffusionConfig(executor_class="my_package:MyExecutor").replace(executor_class=SquareExecutor)
    ) as made:
        assert made.draw()[0].images == ["a square"]


# Python goes on as if nothing of this were there.


@pytest.fixture(scope="module")
def small() -> Iterator[DiffusionEngine]:
    with DiffusionEngine(OmniDiffusionConfig(executor_class=SquareExecutor)) as engine:
        yield engine


@pytest.mark.parametrize("name", sorted(vllm_omni.OF_ENGINE))
def test_a_name_that_is_gone_reads_as_absent(small: DiffusionEngine, name: str) -> None:
    assert not hasattr(small, name)
    assert getattr(small, name, "default") == "default"
    assert name not in dir(small)
    with pytest.raises(vllm_omni.GoneAttributeError, match=r"docs/MIGRATION\.md") as caught:
        getattr(small, name)
    assert f"engine.{name} of vLLM-Omni does not exist here" in str(caught.value)
    assert (caught.value.name, caught.value.obj) == (name, None)  # no guess of Python's after the message
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (vllm_omni.GoneAttributeError, str(caught.value))
    setattr(small, name, 1)  # and it may be given by a subclass or from outside
    assert getattr(small, name) == 1
    delattr(small, name)


@pytest.mark.parametrize("name", sorted(vllm_omni.OF_ENGINE_SCHEDULER))
def test_a_name_of_the_scheduler_that_is_gone(small: DiffusionEngine, name: str) -> None:
    for scheduler in (small.scheduler, omni_core.scheduler):
        assert not hasattr(scheduler, name)
        with pytest.raises(vllm_omni.GoneAttributeError, match=f"scheduler.{name} of vLLM-Omni does not exist here"):
            getattr(scheduler, name)


@pytest.mark.parametrize("where", ["engine", "scheduler", "module", "scheduler module", "package"])
def test_a_misspelled_name_is_an_ordinary_error(small: DiffusionEngine, where: str) -> None:
    things: dict[str, Any] = {
        "engine": small,
        "scheduler": small.scheduler,
        "module": sys.modules["omni_core.engine.engine"],
        "scheduler module": omni_core.scheduler,
        "package": omni_core,
    }
    with pytest.raises(AttributeError, match="has no attribute 'stpe'") as caught:
        _ = things[where].stpe
    assert type(caught.value) is AttributeError
    assert (caught.value.name, caught.value.obj) == ("stpe", things[where])  # Python's "Did you mean" needs these


def test_an_error_within_a_property_is_not_covered_up(small: DiffusionEngine) -> None:
    class Broken(DiffusionEngine):
        @property
        def inner(self) -> Any:
            return self._core.no_such_thing  # type: ignore[attr-defined]

    broken = object.__new__(Broken)
    broken.__dict__.update(small.__dict__)
    with pytest.raises(AttributeError, match="'EngineCore' object has no attribute 'no_such_thing'"):
        _ = broken.inner


def test_copies_and_pickles_are_as_before(small: DiffusionEngine) -> None:
    assert copy.copy(small).config is small.config
    bare = object.__new__(DiffusionEngine)  # what copy and pickle make first
    assert not hasattr(bare, "__setstate__")
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(small)


@pytest.mark.parametrize("request_id", [7, ["a", 7], [["a"]]])
def test_an_id_that_is_none_is_refused_and_harms_nothing(request_id: Any) -> None:
    with DiffusionEngine(OmniDiffusionConfig(executor_class=SquareExecutor)) as engine:
        with pytest.raises(RequestError, match="A request_id is text"):
            engine.abort(request_id)
        [output] = engine.step([OmniDiffusionRequest(prompt="x")])
        assert output.images == ["a square"]


IMPORTS = [(module, name) for module, names in vllm_omni.IMPORTED.items() for name in names]


@pytest.mark.parametrize(("module", "name"), IMPORTS)
def test_what_a_program_says_that_imports_a_name_that_is_gone(module: str, name: str) -> None:
    statement = f"from {module} import {name}"
    done = subprocess.run([sys.executable, "-c", statement], text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    sentence = f"{name} of vLLM-Omni does not exist here. {vllm_omni.IMPORTED[module][name]} See docs/MIGRATION.md."
    assert last == f"omni_core.compat.vllm_omni.GoneImportError: {sentence}"


def test_what_a_program_says_that_uses_an_attribute_that_is_gone() -> None:
    program = """
        from omni_core import DiffusionEngine
        engine = object.__new__(DiffusionEngine)
        engine.add_req_and_wait_for_response([])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], text=True, capture_output=True, timeout=60, check=False
    )
    gone = "engine.add_req_and_wait_for_response of vLLM-Omni does not exist here."
    instead = vllm_omni.OF_ENGINE["add_req_and_wait_for_response"]
    sentence = f"{gone} {instead} See docs/MIGRATION.md."
    assert done.stderr.strip().splitlines()[-1] == f"omni_core.compat.vllm_omni.GoneAttributeError: {sentence}"


def test_type_checkers_refuse_these_names_and_misspelled_ones(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed; the session check has it")
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            from omni_core import BackgroundResources, DiffusionEngine
            from omni_core.engine.engine import Nonsense
            engine = DiffusionEngine()
            engine._make_client()
            engine.stpe([])
            engine.scheduler.mq
            engine.scheduler.add_req([])
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(program)],
        text=True,
        capture_output=True,
        cwd=Path(__file__).parents[1],
        timeout=280,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if "program.py" in line]
    assert [int(line.split("program.py:")[1].split(":")[0]) for line in lines] == [2, 3, 5, 6, 7], done.stdout
