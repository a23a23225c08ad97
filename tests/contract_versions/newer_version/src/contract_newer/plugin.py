import sys

from omni_core import ExecutorSpec, hookimpl


@hookimpl
def omni_register_executors():
    return [ExecutorSpec("contract-newer", "contract_newer.executor:NewerExecutor", "Draws nothing.", api=1000)]


@hookimpl
def omni_engine_started(config, executor):
    print("the hook of contract-newer was called", file=sys.stderr)
