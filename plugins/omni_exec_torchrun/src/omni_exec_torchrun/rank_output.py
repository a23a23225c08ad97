"""The destination of the output of ranks: that of the launcher's output, or files."""

from __future__ import annotations

import os

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, LogsDest, LogsSpecs, Std


class PassOn(LogsSpecs):
    """Ranks write to the output of the launcher.

    torch's default creates a folder in /tmp, which remains if the launcher is killed. Without the folder, torch polls
    /dev/null ten times a second for each rank, which also delays every restart by 0.1 s.
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
    """Return the specification of the ranks' output for torch's agent.

    Args:
        folder: Folder for the output, in torch's layout; None forwards it.
    """
    return PassOn() if folder is None else DefaultLogsSpecs(log_dir=folder, redirects=Std.ALL)
