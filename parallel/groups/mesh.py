"""A gang's ranks arranged along axes. Knows process groups; knows nothing of tokens or models."""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from .axis import Axis, Traffic
from .degrees import Degrees

AXES = ("cfg", "window", "ring", "ulysses")


class Mesh:
    """A gang as one of its ranks sees it: cfg x window x ring x ulysses, neighbours on the last axis next to each other.

    There is no module-level state: drop a mesh and build another one in the same process. The groups of its axes have the gang's
    timeout. They are destroyed with the default process group, all at once: were one destroyed earlier, torch would give its name to the
    next group that is made, whose ranks would then wait for each other for ever.

    gang: all ranks; cfg, window, ring, ulysses: this rank's own line along each axis; sequence: ring and ulysses together, over
    which the tokens of a model call are sharded; branches: these and cfg, both branches of one window; calls: cfg and window together,
    over which different model calls are spread; one_branch: window, ring and ulysses together, all that run one branch.
    """

    def __init__(self, degrees: Degrees | None = None, group: dist.ProcessGroup | None = None) -> None:
        """group: the gang's process group, which every collective stays in; None for a gang of one. Called by all of its ranks.

        Raises ValueError if the degrees do not multiply to the group's size.
        """
        self.degrees = degrees or Degrees()
        num_ranks = self.degrees.num_ranks
        size = 1 if group is None else dist.get_world_size(group)
        if num_ranks != size:
            raise ValueError(
                f"The degrees {self.degrees.sizes} (cfg x window x ring x ulysses) multiply to {num_ranks}, but the gang has {size} ranks."
            )
        self.rank = 0 if group is None else dist.get_rank(group)
        self.traffic = Traffic()
        self._grid = torch.arange(num_ranks).view(self.degrees.sizes)
        self.gang = Axis("gang", self.rank, num_ranks, weakref.ref(group) if group is not None and num_ranks > 1 else None, self.traffic)
        self.cfg, self.window, self.ring, self.ulysses = (self._line(name, (axis,)) for axis, name in enumerate(AXES))
        self.sequence = self._line("sequence", (2, 3))
        self.branches = self._line("branches", (0, 2, 3))
        self.calls = self._line("calls", (0, 1))
        self.one_branch = self.sequence if self.degrees.window_degree == 1 else self._line("one_branch", (1, 2, 3))

    @property
    def size(self) -> int:
        return self.gang.size

    def _line(self, name: str, along: tuple[int, ...]) -> Axis:
        """The ranks that differ from this one along some axes of the grid alone. They build their group together, without the others."""
        place = [int(i) for i in (self._grid == self.rank).nonzero()[0]]
        index = tuple(slice(None) if axis in along else place[axis] for axis in range(len(AXES)))
        members: list[int] = self._grid[index].flatten().tolist()
        if len(members) == 1:
            return Axis(name, traffic=self.traffic)
        if len(members) == self.size:
            return Axis(name, self.rank, self.size, self.gang.held, self.traffic)
        gang = self.gang.group
        assert gang is not None
        everybody = dist.get_process_group_ranks(gang)
        group = dist.new_group([everybody[member] for member in members], timeout=_timeout(gang), use_local_synchronization=True)
        return Axis(name, members.index(self.rank), len(members), weakref.ref(group), self.traffic)


def _timeout(group: dist.ProcessGroup) -> timedelta:
    """The time limit of a group's collectives. torch does not pass it on to groups of some of the ranks, which get half an hour."""
    return group._get_backend(group._device_types[0]).options._timeout


@contextmanager
def leaving_on_error() -> Iterator[None]:
    """Where the body raises, this process leaves its gang: all its process groups are destroyed, at once and without the others.

    Ranks that wait for this one, or for one that waited for it, then hear in a second or two instead of at their timeout. The process
    may join another gang afterwards.
    """
    try:
        yield
    except BaseException as error:
        failed: BaseException | None = error
        while failed is not None:  # frames of failed calls hold groups and unfinished exchanges
            traceback.clear_frames(failed.__traceback__)
            failed = failed.__context__
        leave_gang()
        raise


def leave_gang() -> None:
    """Destroy all process groups of this process; does nothing where there are none."""
    if not dist.is_initialized():
        return
    if dist.get_backend() == "nccl":  # destroying alone would wait for kernels that wait for the others
        dist.distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()
