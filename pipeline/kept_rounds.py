"""Finished rounds of a take, kept as files beside its film, so that another take that begins alike, or the same one after a break, need not
render them again. Chunks are joined by latents, which are kept as they are: what follows is the same to the bit.

A file counts if its name, its key and its checksum are right. It does not say by which gang it was rendered, as no film does.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache import Trace
from ..files import partial_files, remove, written_whole
from .loop.generations import SnapshotError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KeptRounds:
    """The folder that a take's rounds are kept in, and the key of each (`round_keys`). stand_alone: whether the round after them needs no more than
    their latents; otherwise a take goes on from them only together with a snapshot.
    """

    folder: Path
    keys: tuple[str, ...]
    stand_alone: bool = True

    def count_with(self, behind: int | None) -> int:
        """How many rounds a take goes on from. behind: those that a snapshot says are done, None without a snapshot. Raises SnapshotError if one of
        these is not there.
        """
        whole = self.count()
        if behind is not None and whole < behind:
            raise SnapshotError(f"The snapshot of '{self.folder.parent}' goes on after round {behind}, and round {whole + 1} is not whole.")
        return whole if self.stand_alone else behind or 0

    def count(self) -> int:
        """How many rounds from the first on are there; never the last one, with whose end the take ends."""
        whole = 0
        while whole < len(self.keys) - 1 and self._is_whole(whole):
            whole += 1
        return whole

    def are_own(self) -> bool:
        """Whether there is nothing of another take, and nothing damaged."""
        numbers = {self._path(number): number for number in range(len(self.keys))}
        found = set(self.folder.glob("*")) - set(partial_files(self.folder))
        return all(path in numbers and self._is_whole(numbers[path]) for path in found)

    def write(self, number: int, latents: Tensor, trace: Trace | None) -> None:
        """latents: [1, channels, latent frames, height, width]; trace: what was decided in this round, None without a cache."""
        from safetensors.torch import save_file

        local, told = latents.cpu().contiguous(), trace.to_json() if trace else ""
        about = {"key": self.keys[number], "sha256": _checksum(local, told), "trace": told}
        self.folder.mkdir(exist_ok=True)
        with written_whole(self._path(number)) as temporary:
            save_file({"latents": local}, temporary, about)

    def read(self, number: int) -> tuple[Tensor, str]:
        """The round's latents and its trace as JSON, empty without a cache. For rounds that `count` counted."""
        latents, about = _read(self._path(number))
        return latents, about["trace"]

    def take_over(self, other: Path) -> None:
        """Take the rounds that are this take's from another folder, and drop what is here of others."""
        before = replace(self, folder=other).count()
        self.folder.mkdir(exist_ok=True)
        for number in range(before):
            _link(replace(self, folder=other)._path(number), self._path(number))
        self.drop_after(before)

    def drop_after(self, count: int) -> None:
        """Remove all rounds but the first ones."""
        kept = {self._path(number) for number in range(count)}
        for path in self.folder.glob("*") if self.folder.is_dir() else ():
            if path not in kept:
                remove(path)

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number + 1:04d}.safetensors"

    def _is_whole(self, number: int) -> bool:
        try:
            latents, about = _read(self._path(number))
        except (OSError, ValueError):
            return False
        return about.get("key") == self.keys[number] and about.get("sha256") == _checksum(latents, about.get("trace", ""))


def _read(path: Path) -> tuple[Tensor, dict[str, str]]:
    """Raises OSError or ValueError for a file that is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("latents"), file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"'{path}' is damaged ({error})") from None


def _checksum(latents: Tensor, trace: str) -> str:
    return hashlib.sha256(latents.numpy().tobytes() + trace.encode()).hexdigest()


def _link(source: Path, target: Path) -> None:
    """The same file under another name, where the file system has that; a copy elsewhere."""
    try:
        os.link(source, target)
    except OSError:
        with written_whole(target) as temporary:
            shutil.copyfile(source, temporary)
