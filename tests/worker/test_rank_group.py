"""The ranks of a replica, as real processes over gloo on loopback."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from omni_core.errors import RankGroupError
from omni_core.worker.parallel.object_transfer import ForgedError, Seal
from omni_core.worker.parallel.process_groups import listening_on, local_interface
from omni_core.worker.parallel.rank_group import RankGroup
from worker.rank_processes import RankProcesses


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankProcesses]:
    with RankProcesses() as processes:
        yield processes


def test_alone_needs_no_torch_distributed() -> None:
    group = RankGroup.connect(0, 1, "file:///nowhere")
    value, rows = object(), torch.rand(2, 3)
    assert (group.rank, group.world_size) == (0, 1)
    assert group.agree(2.5) == 2.5
    assert group.broadcast_object(value) is value
    assert group.all_gather_objects(value) == [value]
    assert torch.equal(group.all_gather_rows(rows, [2]), rows)
    group.close()
    assert not dist.is_initialized()


def test_agree_is_the_maximum(ranks: RankProcesses) -> None:
    assert ranks.run(lambda group: group.agree([0.5, float("inf")][group.rank])) == [float("inf")] * 2
    values = ranks.run(lambda group: group.agree_all("test", [group.rank, -group.rank, 7.0]))
    assert values == [[1.0, 0.0, 7.0]] * 2


@pytest.mark.parametrize("size", [0, 1, 4000, 5000, 3_000_000])
def test_an_object_of_any_size_is_broadcast(ranks: RankProcesses, size: int) -> None:
    def broadcast(group: RankGroup) -> Any:
        found = group.broadcast_object({"data": b"7" * size} if group.rank == 0 else None)
        return len(found["data"]), set(found["data"])

    assert ranks.run(broadcast) == [(size, {ord("7")} if size else set())] * 2


def test_what_does_not_pickle_is_an_error_on_all_ranks_and_harms_nothing(ranks: RankProcesses) -> None:
    def broadcast(group: RankGroup) -> str:
        with pytest.raises(TypeError, match="cannot be sent") as error:
            group.broadcast_object((item for item in "ab") if group.rank == 0 else None)
        return str(error.value)

    first, second = ranks.run(broadcast)
    assert first == second
    assert ranks.run(lambda group: group.all_gather_objects((i for i in "a") if group.rank else 1)) == [[1, None]] * 2
    assert ranks.run(lambda group: group.agree(group.rank)) == [1, 1]


def test_objects_are_gathered(ranks: RankProcesses) -> None:
    found = ranks.run(lambda group: group.all_gather_objects("x" * 10_000 * group.rank))
    assert found == [["", "x" * 10_000]] * 2


class _Mischief:
    """Writes a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("way", ["broadcast", "gather", "gather in a part"])
def test_an_object_of_one_who_has_not_the_key_is_not_unpickled(tmp_path: Path, way: str) -> None:
    def send(group: RankGroup, path: str) -> str:
        if way == "gather in a part":
            group = group.split([[0, 1]])
        try:
            if way == "broadcast":
                group.broadcast_object(_Mischief(path))
            else:
                group.all_gather_objects(_Mischief(f"{path}{group.rank}"))
        except RankGroupError as error:
            return str(error)
        return ""

    with RankProcesses(keys=(b"one key", b"another")) as ranks:
        told = ranks.run(send, str(tmp_path / "ran"))
    assert "what came in the name of rank 0 is not from it" in told[1]
    expected = {"broadcast": [], "gather": ["ran0"], "gather in a part": ["ran0"]}[way]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected  # a rank's own is no other's


def test_what_was_said_once_is_not_taken_again_or_elsewhere() -> None:
    key = b"the key"
    sealed = Seal(key).close(b"data", 0)
    assert Seal(key).open(sealed, 0) == b"data"
    later, part = Seal(key), Seal(key, "0,1")
    later.next_message()
    for seal, sender in ((later, 0), (part, 0), (Seal(key), 1), (Seal(b"another"), 0)):
        with pytest.raises(ForgedError):
            seal.open(sealed, sender)
    for spoilt in (sealed[:-1], sealed[:10], b"", sealed[:-1] + b"A"):
        with pytest.raises(ForgedError):
            Seal(key).open(spoilt, 0)


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
DTYPES.append(torch.complex64)


@pytest.mark.parametrize("counts", [[2, 2], [3, 1], [0, 2], [1, 0], [0, 0]])
@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (0,)])
def test_rows_are_gathered(ranks: RankProcesses, counts: list[int], shape: tuple[int, ...]) -> None:
    def gather(group: RankGroup) -> list[Any]:
        results = []
        for dtype in DTYPES:
            everything = (torch.arange(sum(counts) * torch.Size(shape).numel()) % 5).to(dtype)
            everything = everything.reshape(sum(counts), *shape)
            mine = torch.split(everything, counts)[group.rank]
            found = group.all_gather_rows(mine, counts)
            with torch.inference_mode():
                again = group.all_gather_rows(mine.clone(), counts)
            results.append((found.dtype == dtype, torch.equal(found, everything), torch.equal(again, everything)))
        return results

    assert ranks.run(gather) == [[(True, True, True)] * len(DTYPES)] * 2


def test_rows_that_are_not_contiguous(ranks: RankProcesses) -> None:
    def gather(group: RankGroup) -> Any:
        return group.all_gather_rows(torch.arange(12.0).reshape(3, 4).T + 100 * group.rank, [4, 4]).tolist()

    columns = torch.arange(12.0).reshape(3, 4).T
    assert ranks.run(gather) == [torch.cat([columns, columns + 100]).tolist()] * 2


def test_it_listens_on_loopback(ranks: RankProcesses) -> None:
    def addresses(_group: RankGroup) -> set[str]:
        import psutil

        found = psutil.Process().net_connections("tcp")
        return {one.laddr.ip.removeprefix("::ffff:") for one in found}

    for found in ranks.run(addresses):
        assert found
        assert found <= {"127.0.0.1", "::1"}
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_the_interface_is_the_users_if_he_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    with listening_on("lo"):
        assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
        assert os.environ["NCCL_SOCKET_IFNAME"] == "lo"
    assert "NCCL_SOCKET_IFNAME" not in os.environ
    assert local_interface("tcp://10.0.0.7:29500") is None
    assert local_interface("env://") is None
    assert local_interface("tcp://127.0.0.1:29500") == local_interface("file:///tmp/store") is not None


def test_a_second_group_in_one_process_is_refused_but_one_within_it_works(ranks: RankProcesses) -> None:
    def connect(group: RankGroup) -> float:
        with pytest.raises(RankGroupError, match="default process group already"):
            RankGroup.connect(group.rank, 2, "file:///nowhere")
        inner = RankGroup.within(dist.new_group(backend="gloo"))
        agreed = inner.agree(inner.rank)
        inner.close()
        with pytest.raises(RankGroupError, match="closed"):
            inner.agree(1.0)
        return agreed + group.agree(inner.rank)

    assert ranks.run(connect) == [2.0, 2.0]


def test_parts_of_the_ranks_are_groups_and_end_with_the_whole(ranks: RankProcesses) -> None:
    def split(group: RankGroup) -> Any:
        whole = RankGroup.within(dist.new_group(backend="gloo"))
        alone, both = whole.split([[0], [1]]), whole.split([[0, 1]])
        assert whole.split([[0, 1]]) is both
        found = alone.agree(alone.world_size), both.agree(both.rank), whole.agree(whole.rank)
        released = []
        whole.on_release(lambda: released.append(True))
        whole.close()
        with pytest.raises(RankGroupError, match="closed"):
            both.agree(1.0)
        return found, released

    assert ranks.run(split) == [((1.0, 1.0, 1.0), [True])] * 2


def test_a_rank_that_does_not_come_is_an_error_in_time(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(RankGroupError, match="Rank 1 of 2 could not connect"):
        RankGroup.connect(1, 2, f"file://{tmp_path}/store", timeout_s=1.0)
    assert time.monotonic() - began < 20
    assert not dist.is_initialized()


def test_ranks_that_have_lost_step_hear_where_they_are() -> None:
    def lose_step(group: RankGroup) -> tuple[str, str]:
        with pytest.raises(RankGroupError) as error:
            group.agree_all(["breakfast", "lunch"][group.rank], [1.0] * (1 + group.rank))
        with pytest.raises(RankGroupError, match="no further use") as later:
            group.agree(1.0)
        return str(error.value), str(later.value)

    with RankProcesses() as processes:
        for first, later in processes.run(lose_step):
            assert "rank 0 at 'breakfast'; rank 1 at 'lunch'" in first
            assert "lunch" in later


@pytest.mark.parametrize("how", ["killed", "stopped", "aborted"])
def test_a_lost_rank_is_an_error_and_never_a_hang(how: str) -> None:
    def wait_for_the_other(group: RankGroup, path: str, how: str) -> Any:
        if group.rank == 1 and how == "aborted":
            group.abort()
            return None
        if group.rank == 1:
            Path(path).touch()
            while True:  # until it is killed, or its group's time is over
                if Path(path + ".end").exists():
                    return None
        began = time.monotonic()
        with pytest.raises(RankGroupError, match="cannot reach the others"):
            group.agree(1.0)
        waited = time.monotonic() - began
        group.close()
        return waited, time.monotonic() - began - waited

    with RankProcesses(timeout_s=3.0 if how == "stopped" else 60.0) as processes:
        path = Path(processes.folder) / "ready"
        processes.send(wait_for_the_other, str(path), how)
        if how == "killed":
            while not path.exists():
                assert processes.processes[1].is_alive()
            processes.kill(1)
        waited, closing = processes.result(0)
        Path(f"{path}.end").touch()
        assert waited < 15
        assert closing < 6
