"""The converged film of a clip, which every sampler approaches as its steps grow more: 200 steps of UniPC, no cache.

Rendered once a clip and model, and kept beside the journals for all stages.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ....files import written_whole
from .models import Clip
from .samplers import sampled_by, sampler
from .studio import Studio

CONVERGED_STEPS = 200


class ConvergedFilms:
    """folder: where they are kept. subject: what they are films of beside the clip, such as the model's hash and versions."""

    def __init__(self, studio: Studio, folder: Path, subject: dict[str, Any]) -> None:
        self._studio, self._folder, self._subject = studio, folder, subject

    def latents(self, clip: Clip) -> Tensor:
        path = self._path(clip)
        if not path.exists():
            with sampled_by(sampler(self._studio.card, "unipc"), self._studio.pipe):
                film = self._studio.film(clip, CONVERGED_STEPS)
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as temporary:
                save_file({"latents": film.latents.contiguous()}, temporary)
        return load_file(path)["latents"]

    def _path(self, clip: Clip) -> Path:
        name = json.dumps([self._subject, asdict(clip), CONVERGED_STEPS], sort_keys=True)
        return self._folder / f"converged-{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"
