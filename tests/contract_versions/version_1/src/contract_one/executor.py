"""The five methods of version 1, options, and a worker that dies once when it is told to."""

from contract_one.plugin import noted
from PIL import Image

from omni_core import DiffusionExecutor, OmniRequestOutput
from omni_core.errors import ExecutorError, PipelineError, RPCError, WorkerDiedError


class Worker:
    def __init__(self, options):
        self.options = options

    def draw(self):
        return Image.new("RGB", (self.options.size, self.options.size), self.options.colour)

    def colour_times(self, number):
        return [self.options.colour] * number

    def sleep(self, level):
        noted.append(("worker sleeps", level))

    def wake_up(self):
        noted.append(("worker wakes",))


class OneExecutor(DiffusionExecutor):
    supported_options = frozenset({"step_timeout_s"})

    def _init_executor(self):
        self.worker = Worker(self.options)
        self.deaths = 0

    def execute_model(self, requests):
        if self.worker is None:
            self.worker = Worker(self.options)
            self.plugins.notify("omni_replica_state", replica=0, state="ready", reason="")
            self.plugins.notify("omni_worker_started", replica=0, rank=0, pid=None)
            self.plugins.notify("omni_worker_restarted", replica=0, rank=0)
        return [self._run(request) for request in requests]

    def _run(self, request):
        if request.prompt == "die" and self.deaths == 0:
            self.deaths += 1
            self.worker = None
            self.plugins.notify("omni_worker_died", replica=0, rank=0, reason="it was told to")
            raise WorkerDiedError("The worker was told to die.", replica=0, rank=0)
        if request.prompt == "fail":
            return OmniRequestOutput.failed(request, PipelineError("The request was told to fail."))
        return OmniRequestOutput(
            request_id=request.request_id,
            seed=request.seed,
            finish_reason="finished",
            output={"images": [self.worker.draw()]},
        )

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None, unique_reply_rank=None):
        call = method if callable(method) else getattr(Worker, method, None)
        if call is None:
            raise RPCError(f"The worker has no method {method!r}.")
        replies = [call(self.worker, *args, **(kwargs or {}))]
        return replies if unique_reply_rank is None else replies[unique_reply_rank]

    def check_health(self):
        if self.worker is None:
            raise ExecutorError("The worker is dead.")

    def shutdown(self):
        self.worker = None

    def request_queued(self, request):
        noted.append(("executor: queued", request.request_id))

    def request_ended(self, request_id, error):
        noted.append(("executor: ended", request_id, type(error).__name__))
