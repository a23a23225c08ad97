"""No page names anything that does not exist, and what must be named is."""

from __future__ import annotations

import sys

import pytest

from docs.known_names import complaint, find
from docs.pages import PAGES, ROOT, blocks_of, code_of, headings_of, links_of, page_name
from omni_core import OmniDiffusionConfig, OmniDiffusionRequest, errors, hookspecs

DOCS = ROOT / "docs"


@pytest.mark.parametrize("page", PAGES, ids=map(page_name, PAGES))
def test_what_a_page_names_exists(page):
    blocks = blocks_of(page)
    complaints = {code: found for code in code_of(page) if (found := complaint(code, page, blocks))}
    assert complaints == {}


@pytest.mark.parametrize("page", PAGES, ids=map(page_name, PAGES))
def test_every_link_leads_somewhere(page):
    lost = []
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in headings_of(target)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize(
    ("code", "is_wrong"),
    [
        ("omni generate --steps", False),
        ("omni generate --stepz", True),
        ("omni draw", True),
        ("omni plugins check NAME", False),
        ("--max-num-seqs 4", False),
        ("--max-num-seq", True),
        ("OMNI_MAX_NUM_SEQS", False),
        ("OMNI_EXECUTOR_OPTIONS__MAX_BACKOFF_S", False),
        ("OMNI_MAX_SEQS", True),
        ("omni_core.engine.core.EngineCore._accept", False),
        ("omni_core.engine.core.EngineCore.accept", True),
        ("omni_core.engines", True),
        ("EngineCore.submit", False),
        ("EngineCore.submitted", True),
        ("WorkerStats.restarts", False),
        ("EngineKernel", True),
        ("engine.stats()", False),
        ("engine.statistics()", True),
        ("benchmarks/rpc.py", False),
        ("benchmarks/grpc.py", True),
        ("max_num_seqs = 4", False),
        ("max_number_of_seqs = 4", True),
        ("POST /v1/videos", False),
        ("GET /v1/images/edits", True),
        ("/v1/files/{job_id}/content", False),
        ("/live", False),
        ("/v1/embeddings", True),
        ("omni_worker_died", False),
        ("omni_worker_dead", True),
    ],
)
def test_the_test_can_tell(code, is_wrong):
    assert (complaint(code, ROOT / "README.md", []) is not None) is is_wrong


def test_every_hook_is_on_the_page_for_plugin_authors():
    text = (DOCS / "PLUGIN_AUTHORS.md").read_text(encoding="utf-8")
    hooks = [name for name in vars(hookspecs) if name.startswith("omni_")]
    assert len(hooks) > 10
    assert [hook for hook in hooks if hook not in text] == []


def test_every_error_is_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    classes = [
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.OmniError)
    ]
    assert len(classes) > 15
    assert [name for name in classes if name not in text] == []


def test_every_field_is_in_the_reference(generated):
    text = generated("CONFIGURATION.md")
    options = [find("omni_exec_multiproc.options.MultiprocOptions"), find("omni_exec_torchrun.options.TorchrunOptions")]
    for model in (OmniDiffusionConfig, OmniDiffusionRequest, *options):
        assert [name for name in model.model_fields if f"# `{name}`\n" not in text] == []
    for name in OmniDiffusionConfig.model_fields:
        assert f"`OMNI_{name.upper()}`" in text


def test_every_command_and_flag_is_in_the_reference(generated):
    from docs.known_names import commands

    text = generated("CLI.md")
    assert {"omni generate", "omni plugins check", "omni torchrun-worker"} <= set(commands())
    for command, flags in commands().items():
        assert f"## `{command}`\n" in text
        assert [flag for flag in flags if flag.startswith("-") and f"`{flag}" not in text] == []


@pytest.fixture
def generated(monkeypatch):
    """Return a page as the site has it."""
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    from generated_pages import expand

    yield lambda page: expand((DOCS / page).read_text(encoding="utf-8"))
    for module in ("generated_pages", "config_reference"):
        sys.modules.pop(module, None)
