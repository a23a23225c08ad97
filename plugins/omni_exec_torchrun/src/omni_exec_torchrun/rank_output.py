"""Where the output of ranks goes: to where the launcher's goes, or into files."""

from __future__ import annotations

import os

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, LogsDest, LogsSpecs, Std


class PassOn(LogsSpecs):
    """Ranks write where the launcher writes.

    torch's own would make a folder in /tmp, which a killed launcher leaves behind; or, told not to, tail /dev/null ten
    times a second for each rank, which also holds up every restart by 0.1 s.
    """

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Redirect nothing."""
        ranks = range(len(envs))
        for env in envs.values():
            env["TORCHELASTIC_ERROR_FILE"] = ""
        console = dict.fromkeys(ranks, "")
        return LogsDest(stdouts=console, stderrs=console, error_files=dict.fromkeys(ranks, os.devnull))

    @property
    def root_log_dir(self) -> str:
        """There is none."""
        return os.devnull


def rank_output(folder: str | None) -> LogsSpecs:
    """Return what torch's agent is to do with the output of ranks.

    Args:
        folder: Where to keep it, in torch's own layout; None passes it on.
    """
    return PassOn() if folder is None else DefaultLogsSpecs(log_dir=folder, redirects=Std.ALL)
