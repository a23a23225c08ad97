import sys

from omni_core import hookimpl


@hookimpl(optionalhook=True)
def omni_replica_drained(replica):
    print("contract-newer-tolerant: drained", file=sys.stderr)


@hookimpl
def omni_request_started(request_id, replica, node=None):
    print(f"contract-newer-tolerant: started on node {node}", file=sys.stderr)
