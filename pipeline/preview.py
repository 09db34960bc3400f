"""Small pictures of a take while it is denoised: a linear projection of latents to RGB, far cheaper than decoding."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .families import Family


class Preview:
    """Fitted once for a model, by least squares on what its own VAE makes of random latents' decoded pictures."""

    def __init__(self, family: Family) -> None:
        self._projection = _fit(family)

    def frames(self, clean: Tensor) -> NDArray[np.uint8]:
        """clean: [1, channels, latent frames, height, width] -> [latent frames, height, width, 3], one pixel a latent cell."""
        latents = clean[0].float().cpu().movedim(0, -1)
        rgb = torch.cat((latents, torch.ones_like(latents[..., :1])), dim=-1) @ self._projection
        frames: NDArray[np.uint8] = rgb.clamp(0, 1).mul(255).round().byte().numpy()
        return frames

    def jpeg(self, clean: Tensor, *, columns: int = 8, height: int = 96) -> bytes:
        """A strip of evenly spaced frames as a JPEG, each `height` pixels high."""
        frames = self.frames(clean)
        chosen = frames[np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)]
        strip = Image.fromarray(np.concatenate(list(chosen), axis=1))
        strip = strip.resize((round(strip.width * height / strip.height), height), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        strip.save(buffer, "JPEG", quality=88)
        return buffer.getvalue()


@torch.no_grad()
def _fit(family: Family, size: int = 24, clips: int = 4) -> Tensor:
    """[channels + 1, 3]: from a latent's channels and 1 to the mean colour of the pixels that it decodes to.

    Decodes smooth random latents of `size` x `size` cells, so that it needs no pictures and fits any VAE with normalised latents.
    """
    generator = torch.Generator().manual_seed(0)
    channels, stride = family.card.latent_channels, family.card.spatial_stride
    inputs, colours = [], []
    for _ in range(clips):
        coarse = torch.randn((1, channels, size // 4, size // 4), generator=generator)
        latent = F.interpolate(coarse, size=(size, size), mode="bilinear")[:, :, None].expand(-1, -1, 2, -1, -1)
        decoded = list(family.decode(latent))[-1][-1].float().cpu().movedim(-1, 0)
        colours.append(F.avg_pool2d(decoded, stride).flatten(1).T)
        inputs.append(latent[0, :, -1].flatten(1).T)
    latents = torch.cat(inputs)
    design = torch.cat((latents, torch.ones(len(latents), 1)), dim=1)
    return torch.linalg.lstsq(design, torch.cat(colours)).solution
