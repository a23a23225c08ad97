"""Advancing the running requests of one worker: continuous batching of stock pipelines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Hashable, Iterable, Sequence

import torch

from omni_core.error_text import is_ctrl_c
from omni_core.errors import PipelineError, RankGroupError
from omni_core.outputs import ForwardReport, SchedulerOutput, StackingStats, StepOutput
from omni_core.request import OmniDiffusionRequest, refuse_used_ids
from omni_core.worker.parallel.batch_parallel import BatchParallel
from omni_core.worker.parallel.lockstep import Lockstep
from omni_core.worker.parallel.replica_ranks import ReplicaRanks
from omni_core.worker.pipeline.denoisers import SuspendablePipeline
from omni_core.worker.pipeline.loader import LoadedPipeline
from omni_core.worker.stacking.call import DenoiserCall
from omni_core.worker.stacking.shared_model import ModelState
from omni_core.worker.stacking.verify import StackingMode, VerifiedStacking
from omni_core.worker.task.interrupt import Interrupt
from omni_core.worker.task.served_kinds import ServedKinds
from omni_core.worker.task.side_thread import SideThread, has_room_for_side_thread
from omni_core.worker.task.state import StateSwitch
from omni_core.worker.task.task import PipelineTask, suspend_autoencoder_call, suspend_denoiser_call
from omni_core.worker.task.turns import Turns

EDITS = "the pipeline puts attention processors or hooks into the model"

# Such processors would let each rank attend to its own part of the sequence only, and nothing would say so.
NOT_SPLIT_BY_SEQUENCE = (
    "The pipeline puts attention processors of its own into the model for this request. They know nothing of sequence "
    "parallelism: use ulysses_degree = 1 and ring_degree = 1, or leave out the guidance that does it."
)

STANDS_STILL = (
    "Request {!r}: the pipeline gave control away outside of a denoiser call, so nothing can wake it. Code that it "
    "calls has switched greenlets by itself (gevent does that); let that code block instead."
)


class ModelRunner:
    """Holds the tasks of the running requests and resumes them from one denoiser call to the next.

    Calls that can be stacked are run as one forward pass. All methods but `interrupt` must be called from the same
    thread, as greenlets cannot leave theirs.

    Args:
        loaded: The pipeline that all requests share.
        stacking: Whether and how calls are stacked.
        ranks: The ranks of the replica; all are given the same work. None: this rank is the only one.
    """

    def __init__(
        self, loaded: LoadedPipeline, stacking: StackingMode = "verified", ranks: ReplicaRanks | None = None
    ) -> None:
        self.loaded = loaded
        self._suspendable = SuspendablePipeline(loaded.pipeline, suspend_denoiser_call, suspend_autoencoder_call)
        self._turns = Turns(self._suspendable)
        self._interrupt = Interrupt()
        self._lockstep: Lockstep | None = None
        self._rows: BatchParallel | None = None
        self._splits_sequence = ranks is not None and ranks.layout.sequence > 1
        if ranks is not None and ranks.everyone.world_size > 1:
            self._lockstep = Lockstep(ranks.everyone, self._interrupt)
            self._rows = BatchParallel(ranks.everyone, StackingStats(), ranks.rows, ranks.peers)
        self._stacking = VerifiedStacking(stacking, self._rows)
        self._served = ServedKinds(self._stacking, self._turns)
        self._switch = StateSwitch(loaded.device)
        self._side: SideThread | None = None
        # When a side thread is done is a matter of luck, and differs between ranks.
        if self._lockstep is None and not loaded.is_offloaded and has_room_for_side_thread(loaded.device):
            self._side = SideThread(loaded.device, self._interrupt.notify)
        self._switch.settle = self.settle
        self._tasks: dict[str, PipelineTask] = {}
        # In the call that runs: whether an early return was asked for while only autoencoders were at work.
        self._was_interrupted = False
        # None: the first call tells, so that what was known of an earlier worker is forgotten.
        self._told_verdicts: tuple[int, ...] | None = None
        # Whether the last call that had waves ran none of them, as it had ends to tell.
        self._has_left_out_waves = False

    @property
    def is_busy(self) -> bool:
        """Whether there are requests that have not ended."""
        return bool(self._tasks)

    @property
    def stats(self) -> StackingStats:
        """What stacking did so far."""
        return self._stacking.stats

    def add(self, requests: Iterable[OmniDiffusionRequest]) -> None:
        """Take up requests.

        Raises:
            RequestError: An id is in use, here or twice among `requests`. None of them is taken up.
        """
        requests = list(requests)
        refuse_used_ids(requests, self._tasks)
        for request in requests:
            self._tasks[request.request_id] = PipelineTask(
                request, self._suspendable, self.loaded, self._side, self._switch
            )

    def interrupt(self) -> None:
        """Let `execute_step` return after the step that is running. May be called from any thread."""
        self._interrupt.set()

    def execute_step(self, scheduler_output: SchedulerOutput) -> StepOutput:
        """Take up new requests, give up ended ones, and run the waves of denoiser calls that are asked for.

        Ends are told at once: the waves that follow one in which a request ended are left out, and all of them if one
        ended before the first. Waves may name requests that are not here (any more).

        Returns:
            Which requests began, moved on and ended, and what the forward passes cost.

        Raises:
            RequestError: A new request has the id of one that runs. Nothing was done.
            RankGroupError: A rank of several is gone, or they have lost step. The runner is of no further use, and no
                request runs any more.
        """
        self.add(scheduler_output.new_requests)
        step_output = StepOutput()
        self._served.begin(self._tasks, step_output)
        try:
            self._execute_step(scheduler_output, step_output)
        except BaseException:
            if self._lockstep is not None:
                self._lockstep.group.abort()  # else the others would wait for this rank
            # Who gets the error takes all requests for lost, and may give their ids to new ones.
            self._drop_tasks()
            raise
        finally:
            self._switch.leave()
        step_output.kinds = {
            request_id: self._kind_number(task) for request_id, task in self._tasks.items() if task.call is not None
        }
        if (verdicts := _verdicts(self._stacking.stats)) != self._told_verdicts:
            self._told_verdicts = verdicts
            step_output.stacking = self._stacking.stats + StackingStats()  # a copy, which stays as it is
        return step_output

    def _execute_step(self, scheduler_output: SchedulerOutput, step_output: StepOutput) -> None:
        self._was_interrupted = False
        if self._lockstep is not None:
            self._lockstep.is_interrupted = False
        for request_id, reason in scheduler_output.ended_requests.items():
            # One that ended by itself in the call before is not here any more, and was reported.
            if (task := self._tasks.get(request_id)) is not None:
                if (told := self._turns.abandon(task, reason)) is not None:
                    step_output.finished.append(told)
                    self._served.note_end(told)
                    del self._tasks[request_id]
                    continue
                task.end(reason)
                self._collect([task], step_output)
        has_run = False
        for wave in scheduler_output.waves:
            self._resume_side_calls(step_output)
            # Never two calls in a row without a wave: else those who end requests fast enough would stop all others.
            if step_output.finished and (has_run or not self._has_left_out_waves):
                break
            if has_run and (not self._tasks or self._is_interrupted()):
                break
            # Each request once: what comes of one call must not be given to the next.
            names = dict.fromkeys(wave)
            self._run_wave([self._tasks[request_id] for request_id in names if request_id in self._tasks], step_output)
            has_run = True
        if scheduler_output.waves:
            self._has_left_out_waves = not has_run

    def _is_interrupted(self) -> bool:
        if self._lockstep is not None:
            return self._lockstep.is_interrupted
        return self._interrupt.take() or self._was_interrupted

    def drain(self) -> list[OmniDiffusionRequest]:
        """End all tasks where they stand, and return their requests so that they can be run again."""
        requests = [task.request for task in self._tasks.values()]
        for task in self._all_tasks():
            task.end("aborted")
        self._turns.forget_ended()
        self._switch.leave()
        self._tasks.clear()
        self._served.forget_running()
        self.settle()
        return requests

    def _drop_tasks(self) -> None:
        for task in self._all_tasks():
            with contextlib.suppress(Exception):
                task.end("aborted")
        self._turns.forget_ended()
        self._tasks.clear()
        self._served.forget_running()

    def settle(self) -> None:
        """Wait until the side thread is idle, so that the weights can be moved."""
        if self._side is not None:
            self._side.wait_for_all()

    def close(self) -> None:
        """End all tasks and the side thread."""
        self.drain()
        if self._side is not None:
            self._side.close()

    def _run_wave(self, tasks: list[PipelineTask], step_output: StepOutput) -> None:
        wave = tasks
        tasks = self._turns.choose(wave, self._tasks.values())
        started = False
        while (task := next((task for task in tasks if not task.is_started), None)) is not None:
            began = time.perf_counter()
            step_output.started.append(task.request.request_id)
            model = ModelState(self._suspendable.parts)
            task.resume()
            if (place := model.change()) is not None:
                self._stacking.on_stateful(f"the pipeline sets {place} for its request, and the model is shared")
                tasks = self._turns.choose(wave, self._tasks.values())
            step_output.start_seconds.append(time.perf_counter() - began)
            started = True
        if started and self._lockstep is not None:
            self._lockstep.settle(tasks)
        waiting = [task for task in tasks if task.call is not None and task.output is None]
        if not waiting and not any(task.output is not None for task in tasks):
            # Only autoencoders are at work: wait for one, or for somebody who wants to be heard.
            side_calls = [task.side_call for task in self._all_tasks() if task.side_call is not None]
            if side_calls:
                self._switch.leave()
                self._interrupt.wait_for(lambda: any(call.done() for call in side_calls))
                self._was_interrupted = self._interrupt.take()
                self._resume_side_calls(step_output)
        groups = self._group(waiting)
        for group in groups:
            self._run_group(group, step_output, several=len(groups) > 1)
        if groups and self._lockstep is not None:
            self._lockstep.settle(tasks)
        self._collect(tasks, step_output)

    def _run_group(self, tasks: Sequence[PipelineTask], step_output: StepOutput, several: bool) -> None:
        began = time.perf_counter()
        calls = [task.call for task in tasks if task.call is not None]
        stats = self._stacking.stats
        stats.calls += len(calls)
        self._served.note_group(tasks)
        outcomes = self._stacking.run(calls, lambda index: self._switch.enter(tasks[index].state))
        total = sum(call.rows for call in calls)
        if outcomes is None:
            for task, call in zip(tasks, calls, strict=True):
                stats.forwards += 1
                stats.rows += call.rows
                if self._rows is None:
                    task.resume()
                else:
                    self._run_on_ranks(task, call, self._rows)
        else:
            # One by one, so that each result is freed when its task has used it.
            for task in tasks:
                outcome = outcomes.pop(0)
                if outcome.error is None:
                    task.resume(outcome.result, outcome.rows)
                else:
                    task.resume_with_error(outcome.error)
                del outcome
        if several and self.loaded.device.type == "cuda":
            torch.cuda.synchronize(self.loaded.device)  # else the time would be that of queueing the work
        step_output.forwards.append(
            ForwardReport(tuple(task.request.request_id for task in tasks), total, time.perf_counter() - began)
        )

    def _run_on_ranks(self, task: PipelineTask, call: DenoiserCall, rows: BatchParallel) -> None:
        """Run one task's call on all ranks. Not inside of the task, so that no pipeline handles the loss of a rank."""
        if self._splits_sequence and task.state.edits.changes_processors:
            task.resume_with_error(PipelineError(NOT_SPLIT_BY_SEQUENCE))
            return
        whole = None
        if task.state.edits.is_active:
            whole = EDITS
        elif task.state.cache.is_active:
            whole = "a step cache decides by all rows what to compute"
        self._switch.enter(task.state)
        try:
            if whole is None:
                result = rows.run(call.module, call.args, call.kwargs)
            else:
                result = rows.run_whole(call.module, call.args, call.kwargs, whole)
        except RankGroupError:
            raise
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            task.resume_with_error(error)
        else:
            task.resume(result)

    def _resume_side_calls(self, step_output: StepOutput) -> None:
        ready = [task for task in self._all_tasks() if task.side_call is not None and task.side_call.done()]
        for task in ready:
            task.resume_side()
        self._collect(ready, step_output)

    def _all_tasks(self) -> list[PipelineTask]:
        return [*self._tasks.values(), *self._turns.abandoned]

    def _collect(self, tasks: Iterable[PipelineTask], step_output: StepOutput) -> None:
        self._turns.forget_ended()
        for task in tasks:
            if task.stands_still:
                task.fail(PipelineError(STANDS_STILL.format(task.request.request_id)))
            if self._tasks.get(task.request.request_id) is not task:
                continue
            if (progress := task.progress()) is not None:
                step_output.progress.append(progress)
            if task.output is not None:
                del self._tasks[task.request.request_id]
                step_output.finished.append(task.output)
                self._turns.note_end(task.output)
                self._served.note_end(task.output)

    def _group(self, tasks: list[PipelineTask]) -> list[list[PipelineTask]]:
        """Return groups of tasks whose calls may become one."""
        if len(tasks) < 2 and self._lockstep is None:
            return [tasks] if tasks else []
        self._switch.leave()
        groups: dict[Hashable, list[PipelineTask]] = {}
        for task in tasks:
            groups.setdefault(self._group_key(task), []).append(task)
        return list(groups.values())

    def _group_key(self, task: PipelineTask) -> Hashable:
        """Return what must agree. No task's state may be in place, so that all are up to date."""
        call, state = task.call, task.state
        assert call is not None
        if state.edits.is_active:
            self._stacking.note_refusal(call, EDITS)
            return task.request.request_id
        call.examine()
        if call.rows == 0 or state.cache.is_active or state.torch.is_grad_enabled:
            return task.request.request_id  # by itself
        return (call.kind, call.values, state.torch.mode, state.process.mode)

    def _kind_number(self, task: PipelineTask) -> int:
        return hash(self._group_key(task))


def _verdicts(stats: StackingStats) -> tuple[int, ...]:
    """Return the numbers of which the driver is told when they change: few of the calls change any."""
    return (stats.verified, len(stats.refused), stats.checks, len(stats.mismatches))
