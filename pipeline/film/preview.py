"""Small pictures of a take while it is denoised: a linear projection of latents to RGB, far cheaper than decoding."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..families import Family


class Preview:
    """Fitted once for a model, by least squares on what its own VAE makes of pictures of known colours."""

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
def _fit(family: Family, cells: int = 24, clips: int = 6) -> Tensor:
    """[channels + 1, 3]: from a latent's channels and 1 to the mean colour of the pixels that it stands for.

    Encodes still clips of random colours, blocks of 4 x 4 latent cells each, so that it needs no pictures and fits any VAE. A causal
    VAE's first latent frame stands for one frame alone and looks different from the others: it is left out.
    """
    generator = torch.Generator().manual_seed(0)
    stride, temporal = family.card.spatial_stride, family.card.temporal_stride
    inputs, colours = [], []
    for _ in range(clips):
        blocks = torch.rand((1, 3, cells // 4, cells // 4), generator=generator)
        picture = F.interpolate(blocks, scale_factor=4.0 * stride, mode="nearest")[0].movedim(0, -1)
        latents = family.encode(picture.expand(1 + 4 * temporal, -1, -1, -1))[0].float().cpu()
        wanted = F.interpolate(blocks, scale_factor=4.0, mode="nearest")[0].flatten(1).T
        for frame in latents[:, 1:].unbind(1):
            inputs.append(frame.flatten(1).T)
            colours.append(wanted)
    features = torch.cat(inputs)
    design = torch.cat((features, torch.ones(len(features), 1)), dim=1)
    return torch.linalg.lstsq(design, torch.cat(colours)).solution
