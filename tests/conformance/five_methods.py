"""An executor of the five methods that the contract asks for, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omni_core import DiffusionExecutor, OmniDiffusionRequest, OmniRequestOutput
from omni_core.errors import ExecutorError, OmniError, RPCError, RPCTimeoutError
from omni_core.serial_thread import SerialThread


class FiveMethods(DiffusionExecutor):
    """Whole requests, one after the other, by a worker that the engine knows nothing of."""

    worker: Any = None

    def _init_executor(self) -> None:
        self.thread = SerialThread("five-methods")
        self.thread.submit(self._load).result(self.config.startup_timeout_s)

    def _load(self) -> None:
        from omni_core.worker.worker import DiffusionWorker

        self.worker = DiffusionWorker(self.config)

    def _close_worker(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def execute_model(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        return self.thread.submit(lambda: self.worker.execute_model(requests)).result()

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Any:
        if unique_reply_rank not in (None, 0):
            raise RPCError(f"There is no rank {unique_reply_rank}.")
        name = getattr(method, "__name__", method)
        future = self.thread.submit(lambda: self.worker.call(method, args, kwargs))
        try:
            result = future.result(timeout)
        except OmniError:
            raise
        except TimeoutError:
            raise RPCTimeoutError(f"{name} took longer than {timeout} s.") from None
        except Exception as error:
            raise RPCError(f"{name} raised {type(error).__name__}: {error}") from error
        return [result] if unique_reply_rank is None else result

    def check_health(self) -> None:
        if self.worker is None or not self.thread.is_alive:
            raise ExecutorError("The worker is gone.")

    def shutdown(self) -> None:
        self.thread.close(10.0, last=self._close_worker)
