"""Which checkpoints a family renders as their own pipeline does; any other is refused, as leaving out a part gives a wrong film without an error.

Knows diffusers' class names and configs as plain JSON: no weights, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_EULER, _HEUN, _UNIPC, _DPM = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
)
# Samplers that a take may name instead of the checkpoint's own.
SAMPLERS = {"euler": _EULER, "unipc": _UNIPC, "dpm++": _DPM}
_CALLS_A_STEP = {_HEUN: 2}  # diffusers' `order`; the others call the model once
_SCHEDULER_MEND = f"save the model with {_EULER}, or with {_UNIPC} (prediction_type flow_prediction, use_flow_sigmas)"


@dataclass(frozen=True)
class Support:
    """Which checkpoints a family renders. parts: the folders of a checkpoint and the class that each must be of, None where any will do.
    schedulers: those that its way of setting timesteps works with. latents: the VAE config's key for its latent channels.
    """

    family: str
    parts: Mapping[str, str | None]
    schedulers: tuple[str, ...]
    latents: str


SUPPORT = {
    "WanPipeline": Support(
        "wan",
        {
            "transformer": "WanTransformer3DModel",
            "vae": "AutoencoderKLWan",
            "text_encoder": "UMT5EncoderModel",
            "tokenizer": None,
            "scheduler": None,
        },
        (_EULER, _HEUN, _UNIPC, _DPM),
        "z_dim",
    ),
    "HunyuanVideoPipeline": Support(
        "hunyuan_video",
        {
            "transformer": "HunyuanVideoTransformer3DModel",
            "vae": "AutoencoderKLHunyuanVideo",
            "text_encoder": "LlamaModel",
            "tokenizer": None,
            "text_encoder_2": "CLIPTextModel",
            "tokenizer_2": None,
            "scheduler": None,
        },
        (_EULER, _UNIPC),  # the others take no sigmas
        "latent_channels",
    ),
}

# Settings of what no family does, and what a model with them does. In models that families render they are absent, null or false.
_UNSUPPORTED = {
    "transformer": {
        "image_dim": "is conditioned on images",
        "added_kv_proj_dim": "is conditioned on images",
        "image_condition_type": "is conditioned on images",
        "pos_embed_seq_len": "is conditioned on first and last images",
        "quantization_config": "has quantised weights",
    },
    "scheduler": {
        "use_dynamic_shifting": "shifts its timesteps by the size of the film",
        "invert_sigmas": "goes from film to noise",
        "stochastic_sampling": "draws noise at every step",
    },
}


def check_index(model: str, index: Mapping[str, Any], support: Support) -> None:
    """Raise ValueError for parts and settings of a pipeline that its family would leave out, and for parts of another class."""
    for name, value in index.items():
        if name.startswith("_") or name in support.parts or value in (None, False) or value == [None, None]:
            continue
        what = f"a part '{name}' ({value[-1]})" if isinstance(value, list) and value else f"{name}={value}"
        raise ValueError(
            f"Model '{model}' has {what}, which longtake would leave out and so render another film than the model's own pipeline; use a "
            f"{index['_class_name']} checkpoint without it (Wan 2.1 or HunyuanVideo text-to-video)."
        )
    for part, wanted in support.parts.items():
        value = index.get(part)
        if not (isinstance(value, list) and len(value) == 2 and value[1]):
            raise ValueError(f"Model '{model}' has no '{part}' in its model_index.json; save it again with save_pretrained.")
        _check_class(model, part, value[1], wanted)


def _check_class(model: str, part: str, found: object, wanted: str | None) -> None:
    if wanted is not None and found != wanted:
        raise ValueError(f"Model '{model}' has a {part} of class {found}, longtake renders with {wanted}; use a checkpoint that has one.")


def check_configs(model: str, support: Support, transformer: Mapping[str, Any], vae: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
    """Raise ValueError for a transformer, VAE or scheduler that its family would call wrongly."""
    for part, config in (("transformer", transformer), ("vae", vae)):
        _check_class(model, part, config.get("_class_name"), support.parts[part])
    for part, config in (("transformer", transformer), ("scheduler", scheduler)):
        for name, meaning in _UNSUPPORTED[part].items():
            if config.get(name) not in (None, False):
                mend = _SCHEDULER_MEND if part == "scheduler" else "use a plain text-to-video checkpoint"
                raise ValueError(f"The {part} of model '{model}' {meaning} ({name}={config[name]}), which longtake cannot do; {mend}.")
    in_channels, out_channels = transformer.get("in_channels"), transformer.get("out_channels")
    channels = {"in_channels": in_channels, "out_channels": out_channels or in_channels, "VAE": vae.get(support.latents)}
    if len(set(channels.values())) > 1:
        said = ", ".join(f"{name} {value}" for name, value in channels.items())
        raise ValueError(
            f"The transformer and the VAE of model '{model}' differ in latent channels ({said}), as in models that take images or videos; use a "
            f"plain text-to-video checkpoint."
        )
    _check_scheduler(model, support, scheduler)


def _check_scheduler(model: str, support: Support, scheduler: Mapping[str, Any]) -> None:
    name = scheduler.get("_class_name")
    where = f"The scheduler of model '{model}' is {name}"
    if name not in support.schedulers:
        raise ValueError(f"{where}; longtake's loop works with {', '.join(support.schedulers)} for such models: {_SCHEDULER_MEND}.")
    if str(name).startswith("FlowMatch"):
        return
    stated = {"prediction_type": scheduler.get("prediction_type"), "use_flow_sigmas": scheduler.get("use_flow_sigmas")}
    if stated != {"prediction_type": "flow_prediction", "use_flow_sigmas": True}:
        said = ", ".join(f"{key}={value}" for key, value in stated.items())
        raise ValueError(f"{where} with {said}, but these models predict a flow's velocity; {_SCHEDULER_MEND}.")
    if str(scheduler.get("algorithm_type")).startswith("sde-"):
        raise ValueError(f"{where} with algorithm_type={scheduler['algorithm_type']}, which draws noise at every step; {_SCHEDULER_MEND}.")


def calls_a_step(scheduler: Mapping[str, Any]) -> int:
    """Model calls in every step of a scheduler but the last, which takes one."""
    return _CALLS_A_STEP.get(str(scheduler.get("_class_name")), 1)
