"""What a checkpoint folder says of itself, read from its JSON files and its card alone: no weights, no torch.

Knows diffusers' folder layout. Everything that a job is checked against before anything is loaded comes from here.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

_PIPELINES = {"WanPipeline": "wan", "HunyuanVideoPipeline": "hunyuan_video"}
_WEIGHTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
_PARTS = {
    "wan": ("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
    "hunyuan_video": ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler"),
}
# What a checkpoint's own card may state otherwise, in its front matter under `longtake`.
_USUAL = {
    "wan": {"trained_frames": 81, "height": 480, "width": 832, "max_sequence_length": 512, "fps": 16},
    "hunyuan_video": {"trained_frames": 129, "height": 720, "width": 1280, "max_sequence_length": 256, "fps": 24},
}


@dataclass(frozen=True)
class ModelCard:
    """family: how it is called. Sizes in pixels and frames; strides in pixels (or frames) a latent cell.

    size_multiple: width and height must be multiples of it. trained_frames, height, width: the clip it was trained for.
    num_layers: blocks in all; num_joint_layers: those that keep the text beside the video (HunyuanVideo's first list; 0 where blocks
    carry no text). dim: width of the hidden states. embeds_guidance: the guidance scale is an input of the model, which needs no second call.
    """

    path: Path
    family: str
    num_heads: int
    num_layers: int
    num_joint_layers: int
    dim: int
    latent_channels: int
    patch_size: tuple[int, int, int]
    spatial_stride: int
    temporal_stride: int
    trained_frames: int
    height: int
    width: int
    max_sequence_length: int
    fps: int
    embeds_guidance: bool

    @property
    def size_multiple(self) -> int:
        return self.spatial_stride * self.patch_size[1]

    def latent_frames(self, num_frames: int) -> int:
        """A causal VAE's first latent frame stands for one frame, the others for `temporal_stride` each."""
        return (num_frames - 1) // self.temporal_stride + 1

    def num_tokens(self, latent_frames: int, height: int, width: int) -> int:
        return latent_frames // self.patch_size[0] * (height // self.size_multiple) * (width // self.size_multiple)


def model_folder(model: str) -> Path:
    """The folder of a model given by path; `demo` is the one that comes with longtake."""
    return Path(str(resources.files("longtake.pipeline.demo") / "model")) if model == "demo" else Path(model)


def read_card(model: str) -> ModelCard:
    """Raises ValueError, with the missing part and the mend, if the folder is no complete checkpoint of a known family."""
    folder = model_folder(model)
    if not folder.is_dir():
        raise ValueError(f"There is no model folder '{model}'; give the path of a checkpoint in diffusers' format, or 'demo'.")
    index = _read_json(folder / "model_index.json", "the model's index; save the model with DiffusionPipeline.save_pretrained")
    pipeline = index.get("_class_name")
    if pipeline not in _PIPELINES:
        raise ValueError(f"Model '{model}' is a {pipeline}; longtake knows {', '.join(_PIPELINES)}.")
    family = _PIPELINES[pipeline]
    _check_parts(folder, _PARTS[family])
    transformer = _read_json(folder / "transformer" / "config.json", "the transformer's config")
    vae = _read_json(folder / "vae" / "config.json", "the VAE's config")
    stated = {**_USUAL[family], **_front_matter(folder / "README.md")}
    return ModelCard(
        path=folder,
        family=family,
        num_heads=transformer["num_attention_heads"],
        num_layers=transformer["num_layers"] + transformer.get("num_single_layers", 0),
        num_joint_layers=transformer["num_layers"] if family == "hunyuan_video" else 0,
        dim=transformer["num_attention_heads"] * transformer["attention_head_dim"],
        latent_channels=transformer["in_channels"],
        patch_size=_patch_size(transformer),
        spatial_stride=vae.get("scale_factor_spatial", vae.get("spatial_compression_ratio", 8)),
        temporal_stride=vae.get("scale_factor_temporal", vae.get("temporal_compression_ratio", 4)),
        embeds_guidance=transformer.get("guidance_embeds", False),
        **stated,
    )


def model_hash(folder: Path) -> str:
    """Hash of what the model is: its JSON files and the headers of its safetensors (names, types, shapes), not 28 GB of weights.

    File sizes and a sample of each file's last bytes go in as well, so that retrained weights of the same shapes differ.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            digest.update(path.name.encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            digest.update(path.name.encode() + _safetensors_sample(path))
    return digest.hexdigest()


def _safetensors_sample(path: Path) -> bytes:
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = file.read(length)
        size = path.stat().st_size
        file.seek(max(8 + length, size - 65536))
        return header + str(size).encode() + file.read()


def _patch_size(transformer: dict[str, Any]) -> tuple[int, int, int]:
    """(frames, height, width), which families write as one list or as two numbers."""
    stated = transformer["patch_size"]
    frames, height, width = stated if isinstance(stated, list) else (transformer["patch_size_t"], stated, stated)
    return frames, height, width


def _check_parts(folder: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        if not (folder / part).is_dir():
            raise ValueError(f"Model folder '{folder}' lacks '{part}/'; download the whole checkpoint, or save it again with save_pretrained.")
    for part in parts:
        if part in _WEIGHTS and not list((folder / part).glob("*.safetensors")):
            raise ValueError(f"Model folder '{folder}' has no weights in '{part}/' (*.safetensors); download the whole checkpoint.")


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"Model folder '{path.parent}' lacks {path.name}: {what}.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' is not valid JSON ({error}); download it again.") from None
    assert isinstance(content, dict)
    return content


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML between the `---` lines at the top of a model card, under its key `longtake`; empty where there is none."""
    if not path.is_file():
        return {}
    pieces = path.read_text().split("---\n", 2)
    if len(pieces) < 3 or pieces[0]:
        return {}
    stated = (yaml.safe_load(pieces[1]) or {}).get("longtake", {})
    assert isinstance(stated, dict), f"'longtake' in the front matter of {path} must be a mapping"
    return stated
