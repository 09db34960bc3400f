"""The peak of the memory that this process holds, since it was last reset."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


def forget_peak(device: str) -> None:
    """Reset the peak. On the CPU of a system that does not allow it, the peak remains that since the start of the process."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        (_PROCESS / "clear_refs").write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return


def peak_bytes(device: str) -> int:
    """Bytes that torch's allocator held on this rank's accelerator; on the CPU, all that the process had in memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = _PROCESS / "status"
    lines = status.read_text().splitlines() if status.is_file() else []
    peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return 1024 * (peaks[0] if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
