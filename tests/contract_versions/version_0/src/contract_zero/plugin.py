import sys

from omni_core import ExecutorSpec, hookimpl


@hookimpl
def omni_register_executors():
    return [ExecutorSpec("contract-zero", "contract_zero.executor:ZeroExecutor", "Draws nothing.", api=0)]


@hookimpl
def omni_engine_started(config, executor):
    print("the hook of contract-zero was called", file=sys.stderr)
