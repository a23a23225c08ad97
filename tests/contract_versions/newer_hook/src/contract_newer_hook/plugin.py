from omni_core import hookimpl


@hookimpl
def omni_replica_drained(replica):
    raise RuntimeError("a hook that this core does not know was called")
