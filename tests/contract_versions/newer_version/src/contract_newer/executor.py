from omni_core import DiffusionExecutor


class NewerExecutor(DiffusionExecutor):
    def _init_executor(self):
        raise RuntimeError("an executor of version 1000 of the contract was started")

    def execute_model(self, requests):
        return []

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None, unique_reply_rank=None):
        return []

    def check_health(self):
        pass

    def shutdown(self):
        pass
