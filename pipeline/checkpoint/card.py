"""What a checkpoint folder says of itself, read from its JSON files and its card alone: no weights, no torch.

Knows diffusers' folder layout. Everything that a job is checked against before anything is loaded comes from here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ...cache.recipe.fit import name_from_path
from ...cache.sampler.flow_shift import flow_shift
from .support import SAMPLERS, SUPPORT, calls_a_step, check_configs, check_index

_WEIGHTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")  # a tokenizer has one of them
# By family; a checkpoint's README.md may state other values in its front matter, under `longtake`.
_USUAL = {
    "wan": {"trained_frames": 81, "height": 480, "width": 832, "max_sequence_length": 512, "fps": 16, "guidance_scale": 5.0},
    "hunyuan_video": {"trained_frames": 129, "height": 720, "width": 1280, "max_sequence_length": 256, "fps": 24, "guidance_scale": 5.0},
}
CLEAN_CONTEXT = {"wan": ("joint", "isolated"), "hunyuan_video": ()}  # by family, which ways of going on from clean frames it can be called in
BANDED = ("wan",)  # families whose blocks let each segment of a take attend to frames and text of its own


@dataclass(frozen=True)
class ModelCard:
    """name: the model's name, by which the published numbers of recipes are found. family: which of families.FAMILIES loads and calls it. Sizes
    in pixels and frames; strides in pixels (or frames) a latent cell.

    size_multiple: width and height must be multiples of it. trained_frames, height, width: the clip it was trained for; guidance_scale: of takes
    that name none.
    num_layers: blocks in all; num_joint_layers: those of them that hold text and video apart (HunyuanVideo's first list; 0 where
    blocks carry no text). dim: width of the hidden states. embeds_guidance: the guidance scale is an input of the model, which needs no second call.
    calls_a_step: model calls in every step of the scheduler but the last, which takes one. scheduler: its class in
    diffusers; flow_shift: how far it moves its timesteps towards noise. samplers: those that a take may name instead of it.
    clean_context: how it was trained to go on from frames without noise, some of CLEAN_CONTEXT: `joint`, all frames attending to each other, or
    `isolated`, those without noise attending only to each other.
    """

    path: Path
    name: str
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
    fps: float
    guidance_scale: float
    embeds_guidance: bool
    calls_a_step: int = 1
    scheduler: str = SAMPLERS["euler"]
    flow_shift: float = 1.0
    samplers: tuple[str, ...] = tuple(SAMPLERS)
    clean_context: tuple[str, ...] = ()

    @property
    def size_multiple(self) -> int:
        return self.spatial_stride * self.patch_size[1]

    @property
    def called(self) -> str:
        """What commands and jobs call the model by: `demo`, or the path of its folder."""
        return "demo" if self.path == model_folder("demo") else str(self.path)

    @property
    def sampler(self) -> str | None:
        """The name in SAMPLERS of the checkpoint's own scheduler; None for one that has no name there."""
        return next((name for name, scheduler in SAMPLERS.items() if scheduler == self.scheduler), None)

    def sampled_by(self, sampler: str | None) -> ModelCard:
        """The same model with another sampler, by its name in SAMPLERS; None keeps the checkpoint's own."""
        if sampler is None:
            return self
        return replace(self, scheduler=SAMPLERS[sampler], calls_a_step=calls_a_step({"_class_name": SAMPLERS[sampler]}))

    def latent_frames(self, num_frames: int) -> int:
        """A causal VAE's first latent frame stands for one frame, the others for `temporal_stride` each."""
        return (num_frames - 1) // self.temporal_stride + 1

    def frames(self, latent_frames: range) -> range:
        """The frames that some latent frames in a row stand for."""
        return range(max(0, (latent_frames.start - 1) * self.temporal_stride + 1), (latent_frames.stop - 1) * self.temporal_stride + 1)

    def num_calls(self, num_inference_steps: int) -> int:
        """Model calls of a branch in a take: what a cache counts as its steps."""
        return self.calls_a_step * (num_inference_steps - 1) + 1

    def num_tokens(self, latent_frames: int, height: int, width: int) -> int:
        return latent_frames // self.patch_size[0] * (height // self.size_multiple) * (width // self.size_multiple)


def model_folder(model: str) -> Path:
    """The folder of a model given by path, absolute, as ranks have other working folders. `demo` is the one that comes with longtake."""
    return Path(str(resources.files("longtake.pipeline.demo") / "model")) if model == "demo" else Path(model).expanduser().absolute()


def read_card(model: str, name: str = "") -> ModelCard:
    """model: the folder's path, or `demo`. name: what the model is called; if left out, what its README.md states, or else its folder's name.

    Raises ValueError, with the missing part and the mend, if the folder is no complete checkpoint of a known family.
    """
    folder = model_folder(model)
    if not folder.is_dir():
        raise ValueError(f"There is no model folder '{model}'; give the path of a checkpoint in diffusers' format, or 'demo'.")
    index = _read_json(folder / "model_index.json", "the model's index; save the model with DiffusionPipeline.save_pretrained")
    pipeline = index.get("_class_name")
    support = SUPPORT.get(str(pipeline))
    if support is None:
        raise ValueError(f"Model '{model}' is a {pipeline}; longtake knows {', '.join(SUPPORT)}.")
    check_index(model, index, support)
    _check_parts(folder, support.parts)
    transformer = _read_json(folder / "transformer" / "config.json", "the transformer's config")
    vae = _read_json(folder / "vae" / "config.json", "the VAE's config")
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json", "the scheduler's config")
    check_configs(model, support, transformer, vae, scheduler)
    stated = _front_matter(folder / "README.md", _USUAL[support.family])
    own_name, context = stated.pop("name", ""), stated.pop("clean_context", [])
    if unknown := [how for how in context if how not in CLEAN_CONTEXT[support.family]]:
        able = ", ".join(CLEAN_CONTEXT[support.family]) or "nothing, for models of this kind"
        raise ValueError(f"'{folder / 'README.md'}': clean_context names {unknown[0]!r}; it can name {able}.")
    size = _sizes(folder / "transformer" / "config.json", transformer, support.family)
    return ModelCard(
        path=folder,
        name=name or own_name or name_from_path(str(folder)),
        family=support.family,
        dim=size["num_heads"] * size.pop("head_dim"),
        **size,
        patch_size=_patch_size(folder / "transformer" / "config.json", transformer),
        spatial_stride=vae.get("scale_factor_spatial", vae.get("spatial_compression_ratio", 8)),
        temporal_stride=vae.get("scale_factor_temporal", vae.get("temporal_compression_ratio", 4)),
        embeds_guidance=transformer.get("guidance_embeds", False),
        calls_a_step=calls_a_step(scheduler),
        scheduler=scheduler["_class_name"],
        flow_shift=flow_shift(scheduler["_class_name"], scheduler),
        samplers=tuple(name for name, scheduler_class in SAMPLERS.items() if scheduler_class in support.schedulers),
        clean_context=tuple(context),
        **{**_USUAL[support.family], **stated},
    )


def _sizes(path: Path, transformer: dict[str, Any], family: str) -> dict[str, Any]:
    needed = {"num_heads": "num_attention_heads", "head_dim": "attention_head_dim", "num_layers": "num_layers", "latent_channels": "in_channels"}
    size = {name: _whole_number(path, key, transformer.get(key)) for name, key in needed.items()}
    size["num_joint_layers"] = size["num_layers"] if family == "hunyuan_video" else 0
    if family == "hunyuan_video":
        size["num_layers"] += _whole_number(path, "num_single_layers", transformer.get("num_single_layers"))
    return size


def _whole_number(path: Path, key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"'{path}': {key} is {'missing' if value is None else repr(value)}; it must be a whole number of at least 1.")
    return value


def _patch_size(path: Path, transformer: dict[str, Any]) -> tuple[int, int, int]:
    """(frames, height, width), which families write as one list or as two numbers."""
    stated = transformer.get("patch_size")
    sizes = stated if isinstance(stated, list) and len(stated) == 3 else [transformer.get("patch_size_t"), stated, stated]
    frames, height, width = (_whole_number(path, "patch_size", size) for size in sizes)
    return frames, height, width


def _check_parts(folder: Path, parts: Iterable[str]) -> None:
    for part in parts:
        if not (folder / part).is_dir():
            raise ValueError(f"Model folder '{folder}' lacks '{part}/'; download the whole checkpoint, or save it again with save_pretrained.")
    for part in parts:
        if part in _WEIGHTS:
            _read_json(folder / part / "config.json", "the part's config; download the whole checkpoint")
            _check_weights(folder, part)
        elif part.startswith("tokenizer") and not any((folder / part / name).is_file() for name in _VOCABULARIES):
            raise ValueError(f"Model folder '{folder}' has no vocabulary in '{part}/' ({', '.join(_VOCABULARIES)}); download the whole checkpoint.")


def _check_weights(folder: Path, part: str) -> None:
    files = sorted((folder / part).glob("*.safetensors"))
    if not files:
        raise ValueError(f"Model folder '{folder}' has no weights in '{part}/' (*.safetensors); download the whole checkpoint.")
    for index in (folder / part).glob("*.safetensors.index.json"):
        named = _read_json(index, "the weights' index").get("weight_map")
        lacking = sorted(set(named.values()) - {file.name for file in files}) if isinstance(named, dict) else [index.name]
        if lacking:
            raise ValueError(f"Model folder '{folder}' lacks weights in '{part}/' ({', '.join(lacking)}); download the whole checkpoint.")
    name = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
    if not any((folder / part / f"{name}.safetensors{suffix}").is_file() for suffix in ("", ".index.json")):
        raise ValueError(
            f"Model folder '{folder}' has weights in '{part}/' ({files[0].name}), but neither {name}.safetensors nor an index of its parts "
            f"({name}.safetensors.index.json); download the whole checkpoint, or save a variant (fp16, bf16) again without `variant`."
        )
    for file in files:
        _check_whole(file)


def _check_whole(file: Path) -> None:
    """Raise ValueError for a file that is not as long as its header says: a download that broke off, or a pointer of Git LFS."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        size = file.stat().st_size
        try:
            header = json.loads(opened.read(length)) if 8 + length <= size else {}
            ends = [value["data_offsets"][1] for name, value in header.items() if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError):
            ends = []
    if not ends or 8 + length + max(ends) != size:
        raise ValueError(f"'{file}' is no whole safetensors file ({size} bytes); download it again.")


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"Model folder '{path.parent}' lacks {path.name}: {what}.") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"'{path}' is not valid JSON ({error}); download it again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' must hold a JSON object, {what}; download it again.")
    return content


def _front_matter(path: Path, usual: dict[str, float]) -> dict[str, Any]:
    """The YAML between the `---` lines at the top of a model card, under its key `longtake`; empty where there is none.

    usual: what may be stated besides the model's name and its clean_context.
    """
    if not path.is_file():
        return {}
    try:
        pieces = path.read_text(encoding="utf-8").split("---\n", 2)
        matter = yaml.safe_load(pieces[1]) if len(pieces) == 3 and not pieces[0] else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The front matter of '{path}' cannot be read ({' '.join(str(error).split())}); mend the YAML between its `---`.") from None
    stated = matter.get("longtake", {}) if isinstance(matter, dict) else {}
    where = f"'longtake' in the front matter of '{path}'"
    known = (*usual, "name", "clean_context")
    if not isinstance(stated, dict):
        raise ValueError(f"{where} is {stated!r}; it must be a mapping of {', '.join(known)}.")
    for key, value in stated.items():
        if key not in known:
            raise ValueError(f"{where} has no setting '{key}'. Known: {', '.join(known)}.")
        _check_stated(path, where, key, value)
    return stated


def _check_stated(path: Path, where: str, key: str, value: object) -> None:
    if key == "name":
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}: name is {value!r}; it must be a text, Wan2.1-T2V-1.3B for example.")
    elif key == "clean_context":
        if not isinstance(value, list):
            raise ValueError(f"{where}: clean_context is {value!r}; it must be a list, [joint] for example.")
    elif key == "fps":
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 1):
            raise ValueError(f"{where}: fps is {value!r}; it must be a number of at least 1.")
    elif key == "guidance_scale":
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{where}: guidance_scale is {value!r}; it must be a finite number of at least 0.")
    else:
        _whole_number(path, f"longtake.{key}", value)
