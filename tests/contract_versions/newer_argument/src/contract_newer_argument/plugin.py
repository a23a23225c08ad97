from omni_core import hookimpl


@hookimpl
def omni_request_started(request_id, replica, node):
    raise RuntimeError("a hook with an argument that this core does not give was called")
