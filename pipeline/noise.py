"""The noise that a take starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..later import np, torch

if TYPE_CHECKING:
    from torch import Tensor


def frame_noise(seed: int, num_frames: int, channels: int, height: int, width: int) -> Tensor:
    """[1, channels, num_frames, height, width], fp32 on the CPU, sizes in latent cells.

    Every latent frame has its own generator seeded by (seed, frame): the first frames do not change when a take gets longer.
    """
    frames = []
    for frame in range(num_frames):
        state = int(np.random.SeedSequence((seed, frame)).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(state)
        frames.append(torch.randn((channels, height, width), generator=generator))
    return torch.stack(frames, dim=1)[None]


def diffusers_noise(seed: int, num_frames: int, channels: int, height: int, width: int) -> Tensor:
    """Noise as stock pipelines draw it from `torch.Generator().manual_seed(seed)`, for parity tests."""
    return torch.randn((1, channels, num_frames, height, width), generator=torch.Generator().manual_seed(seed))


NOISES = {"frame": frame_noise, "diffusers": diffusers_noise}
