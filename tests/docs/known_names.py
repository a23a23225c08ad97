"""What exists, for the test that the documentation names nothing that does not."""

from __future__ import annotations

import ast
import builtins
import importlib
import keyword
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from docs.pages import ROOT, Block

SOURCES = [ROOT / "src", *ROOT.glob("plugins/*/src")]
# What others have named, in the words in which they are documented there.
FROM_ELSEWHERE = {
    "--gpus all", "--read-only --tmpfs /tmp", "--stop-timeout", "--strict", "-e OMNI_DATA_PARALLEL_SIZE=4",
    "-e OMNI_MODEL=owner/name", "-g", "CUDA_VISIBLE_DEVICES", "ContextParallelConfig", "DiffusionPipeline",
    "DiffusionPipeline.from_pretrained", "Dockerfile", "Dockerfile.cuda", "FORWARDED_ALLOW_IPS",
    "FirstBlockCacheConfig", "HF_HUB_OFFLINE", "Host", "MemoryDenyWriteExecute", "OMP_NUM_THREADS", "OOMKilled",
    "Origin", "PYTHONPATH", "PrivateDevices", "Recreate", "TensorParallelConfig", "asyncio",
    "concurrent.futures.Future", "enable_cache", "from_pretrained", "gen_ai", "hatchling", "lint-imports",
    "model_class_name", "multiprocessing",
    "multiprocessing.Pipe", "nox", "num_gpus", "pip", "pluggy", "psutil", "pytest", "stop_grace_period", "structlog",
    "sys.path", "sys.setprofile", "torch.compile", "torch.distributed", "torchrun", "vllm_omni",
}  # fmt: skip
# What the variables of the examples hold.
VARIABLES = {
    "engine": "omni_core.DiffusionEngine",
    "config": "omni_core.OmniDiffusionConfig",
    "handle": "omni_core.RequestHandle",
    "output": "omni_core.OmniRequestOutput",
    "executor": "omni_core.DiffusionExecutor",
    "engine.executor": "omni_core.DiffusionExecutor",
    "engine.scheduler": "omni_core.scheduler.Scheduler",
    "stacking": "omni_core.outputs.StackingStats",
    "output.metrics": "omni_core.outputs.RequestMetrics",
}


@cache
def words_of_the_code() -> frozenset[str]:
    """Return every identifier in the sources, and every text there that could be one."""
    found: set[str] = set()
    for folder in SOURCES:
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                found.update(_words(node))
    return frozenset(found)


@cache
def monitoring_names() -> frozenset[str]:
    """Return the families of metrics and the alerts. The tests of omni-metrics hold both against the plugin."""
    page = (ROOT / "docs" / "METRICS.md").read_text(encoding="utf-8")
    alerts = (ROOT / "deploy" / "monitoring" / "alerts.yml").read_text(encoding="utf-8")
    return frozenset(re.findall(r"^\| `(\w+)` \| (?:counter|gauge|histogram) ", page, re.MULTILINE)) | frozenset(
        re.findall(r"- alert: (\w+)", alerts)
    )


def _words(node: ast.AST) -> Iterator[str]:
    for field in ("id", "attr", "arg", "name"):
        value = getattr(node, field, None)
        if isinstance(value, str):
            yield value
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.:-]+", node.value):
        yield node.value


def find(name: str) -> Any:
    """Return what a dotted name such as `omni_core.engine.core.EngineCore._accept` stands for.

    Raises:
        LookupError: Nothing of that name exists.
    """
    parts = name.replace(":", ".").split(".")
    for number in range(len(parts), 0, -1):
        module = ".".join(parts[:number])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            continue
        for part in parts[number:]:
            found = attribute(found, part)
        return found
    raise LookupError(f"there is no module of {name}")


def attribute(owner: Any, name: str) -> Any:
    """Return an attribute, or, of a class, True if its instances have one of that name.

    Raises:
        LookupError: There is none.
    """
    try:
        return getattr(owner, name)
    except AttributeError:
        names = set(getattr(owner, "model_fields", {}))
        for one in getattr(owner, "__mro__", ()):
            names |= set(vars(one).get("__annotations__", {})) | _set_on_instances(one)
        if name in names:
            return True
        raise LookupError(f"{owner!r} has no {name}") from None


def _set_on_instances(owner: type) -> set[str]:
    file = getattr(sys.modules.get(owner.__module__), "__file__", None)
    if file is None or not owner.__module__.startswith("omni_"):
        return set()
    return set(re.findall(r"self\.(\w+)\s*(?::[^=\n]+)?=[^=]", Path(file).read_text(encoding="utf-8")))


@cache
def classes() -> dict[str, str]:
    """Return the full name of every class of the sources."""
    found = {}
    for folder in SOURCES:
        for file in folder.rglob("*.py"):
            module = ".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    found[node.name] = f"{module}.{node.name}"
    return found


@cache
def commands() -> dict[str, set[str]]:
    """Return the flags of each command of `omni`, by its full name."""
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    try:
        walk = importlib.import_module("cli_reference").commands
    finally:
        sys.path.pop(0)
    return {
        context.command_path: {
            flag for one in context.command.get_params(context) for flag in (*one.opts, *one.secondary_opts)
        }
        for context in walk()
    }


def complaint(code: str, page: Path, blocks: list[Block]) -> str | None:
    """Return what is wrong with an inline code of a page; None if nothing is, or nothing can be told."""
    text = code.strip()
    if (
        text in FROM_ELSEWHERE
        or text in monitoring_names()
        or hasattr(builtins, text.split("(")[0])
        or keyword.iskeyword(text)
    ):
        return None
    for pattern, check in _CHECKS:
        if re.fullmatch(pattern, text):
            return check(text, page, blocks)
    return None


def _command(text: str, page: Path, blocks: list[Block]) -> str | None:
    words = text.split()
    path = "omni"
    for word in words[1:]:
        if f"{path} {word}" in commands():
            path = f"{path} {word}"
        elif path == "omni" and re.fullmatch(r"[a-z-]+", word) and not word.startswith("-"):
            return None if _is_made_on(blocks, f'"{word}"') else f"there is no command {path} {word}"
    flags = commands()[path]
    unknown = [
        word
        for word in words
        if word.startswith("-") and word.split("=")[0] not in flags and word not in ("-h", "--help")
    ]
    return f"{path} has no {', '.join(unknown)}" if unknown else None


def _flag(text: str, page: Path, blocks: list[Block]) -> str | None:
    flag = re.split(r"[ =]", text)[0]
    return None if any(flag in flags for flags in commands().values()) else f"no command has the flag {flag}"


def _variable(text: str, page: Path, blocks: list[Block]) -> str | None:
    from omni_core.config import OTHER_ENVIRONMENT, unknown_environment

    name = text.split("=")[0]
    known = name in OTHER_ENVIRONMENT or name in words_of_the_code()
    return None if known or not unknown_environment({name: "1"}) else f"the variable {name} means nothing"


def _full_name(text: str, page: Path, blocks: list[Block]) -> str | None:
    try:
        find(text.split("(")[0].rstrip("."))
    except (LookupError, ImportError) as error:
        return str(error)
    return None


def _file(text: str, page: Path, blocks: list[Block]) -> str | None:
    if any(block.file == text or (block.file or "").endswith(f"/{text}") for block in blocks):
        return None
    places = [
        ROOT,
        page.parent,
        ROOT / "src",
        ROOT / "src/omni_core",
        ROOT / "src/omni_core/models/digits",
        ROOT / "benchmarks",
        ROOT / "examples",
        ROOT / "docs/diagrams",
        ROOT / "docs/images",
        ROOT / "deploy/monitoring",
    ]
    found = any((place / text).exists() for place in places) or (text.startswith("/") and Path(text).exists())
    return None if found or text in _WRITTEN_BY_USERS or _is_made_on(blocks, text) else f"there is no file {text}"


def _endpoint(text: str, page: Path, blocks: list[Block]) -> str | None:
    from omni_serve.app import ROUTES

    method, _, path = text.rpartition(" ")
    routes = [(one, re.sub(r":path\b", "", route)) for one, route, _ in ROUTES]
    routes += [("GET", "/openapi.json"), ("GET", "/metrics")]
    known = any(
        method in ("", one) and (route == path or (not method and route.startswith(f"{path}/")))
        for one, route in routes
    )
    return None if known or path in _OF_OTHER_SERVERS or _is_made_on(blocks, text) else f"no endpoint is {text}"


def _is_made_on(blocks: list[Block], text: str) -> bool:
    """Whether the blocks of the page themselves bring something into being."""
    return any(text in block.text or text in (block.file or "") for block in blocks)


def _of_a_class(text: str, page: Path, blocks: list[Block]) -> str | None:
    name, _, rest = text.split("(")[0].partition(".")
    if name not in classes():
        elsewhere = name in words_of_the_code() or _is_made_on(blocks, name)
        return None if elsewhere else f"there is no class {name}"
    return _attributes(find(classes()[name]), rest)


def _of_a_variable(text: str, page: Path, blocks: list[Block]) -> str | None:
    chain = text.split("(")[0]
    for variable, name in sorted(VARIABLES.items(), key=lambda one: -len(one[0])):
        if chain.startswith(f"{variable}."):
            return _attributes(find(name), chain.removeprefix(f"{variable}."))
    return None


def _attributes(owner: Any, rest: str) -> str | None:
    try:
        if rest:
            attribute(owner, rest.split(".")[0])
    except LookupError as error:
        return str(error)
    return None


def _word(text: str, page: Path, blocks: list[Block]) -> str | None:
    name = re.split(r"[ =(]", text)[0]
    flags = {flag.strip("-") for one in commands().values() for flag in one}
    known = name in words_of_the_code() or name in flags or any(name in path.split() for path in commands())
    return None if known or _is_made_on(blocks, name) else f"nothing in the code is called {name}"


_WRITTEN_BY_USERS = {"omni.toml", "pyproject.toml", "constraints.txt"}
# On the page for those who come from them.
_OF_OTHER_SERVERS = {"/v1/videos/sync", "/models", "/v1/set_lora", "/v1/images/{image_id}/content"}
_CHECKS = [
    (r"omni( .*)?", _command),
    (r"-{1,2}[a-z][\w-]*([ =].*)?", _flag),
    (r"OMNI_[A-Z_]*[A-Z](=.*)?", _variable),
    (r"omni_(core|exec_multiproc|exec_torchrun)\b[\w.:]*(\(.*\))?", _full_name),
    (r"((GET|POST|DELETE) )?/(v1/[\w/{}]+|live|ready|health|metrics|models|openapi\.json)", _endpoint),
    (r"[\w./-]*\w\.(py|md|toml|svg|txt|json|jinja)|/[a-z/]+", _file),
    (r"(src|docs|tests|benchmarks|examples|plugins|training)/[\w./-]*", _file),
    (r"[A-Z]\w*[a-z]\w*(\.\w+)*(\(.*\))?", _of_a_class),
    (r"(engine|config|handle|output|executor|stacking)\.[\w.]+(\(.*\))?", _of_a_variable),
    (r"[a-z_]\w*(\(.*\)| ?= ?.*)?", _word),
]  # fmt: skip
