"""The noise that a take starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..later import np, torch

if TYPE_CHECKING:
    from torch import Tensor


def frame_noise(seed: int, of: range, channels: int, height: int, width: int) -> Tensor:
    """Of these latent frames of a take: [1, channels, frames, height, width], fp32 on the CPU, sizes in latent cells.

    Every latent frame has its own generator seeded by (seed, frame): a frame's noise depends neither on the take's length nor on its rounds.
    """
    frames = []
    for frame in of:
        state = int(np.random.SeedSequence((seed, frame)).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(state)
        frames.append(torch.randn((channels, height, width), generator=generator))
    return torch.stack(frames, dim=1)[None]


def diffusers_noise(seed: int, of: range, channels: int, height: int, width: int) -> Tensor:
    """Noise as stock pipelines draw it from `torch.Generator().manual_seed(seed)`, for parity tests: of a whole take, which they draw at once."""
    assert of.start == 0, "Take.check refuses it for takes of several rounds"
    return torch.randn((1, channels, len(of), height, width), generator=torch.Generator().manual_seed(seed))


NOISES = {"frame": frame_noise, "diffusers": diffusers_noise}
