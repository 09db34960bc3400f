"""Making recipes that fit a model: what may be asked for, the takes that are rendered for it, and the recipes that come of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ...cache import Recipe, load_recipe
from ...cache.recipe.calibration import Calibration
from ...cache.recipe.config import suggestion
from ...cache.sampler.linear_map import linear_map
from ..checkpoint.card import ModelCard
from ..checkpoint.model_hash import model_hash
from ..families import FAMILIES
from ..loop.render import Renderer
from ..recipes.check import check_recipe, sampling_of
from ..take import Take, TimelineSettings
from .method import Method, Setting
from .methods import CALIBRATIONS


def calibration_takes(
    card: ModelCard,
    prompts: Iterable[str],
    num_inference_steps: int,
    guidance_scale: float,
    flow_shift: float | None = None,
    scheduler: str | None = None,
    noise: str = "frame",
    timeline: TimelineSettings | None = None,
) -> list[Take]:
    """One take a prompt: of the model's own clip length, or the shortest one that shows all that a longer one would on a timeline."""
    settings: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    clips = [Take.clip(card, f"calibration-{index}", prompt, seed=index, **settings) for index, prompt in enumerate(prompts)]
    if timeline is not None and timeline.name != "full":
        num_frames = card.frames(range(timeline.shortest)).stop
        clips = [replace(clip, num_frames=num_frames, timeline=timeline) for clip in clips]
    return [replace(clip, flow_shift=flow_shift, scheduler=scheduler, noise=noise) for clip in clips]


def check_calibration(
    name: str, card: ModelCard, takes: list[Take], *, computed: int | None = None, threshold: float | None = None
) -> tuple[Method, Recipe, Setting]:
    """The recipe's method, the recipe as it comes with longtake, without numbers, and the method's settings, the usual ones where none is given.

    Raises ValueError, with the mend, for recipes that are not calibrated or do not fit the model, and for numbers that make no sense.
    """
    if name not in CALIBRATIONS:
        raise ValueError(f"Recipe '{name}' cannot be calibrated. {suggestion(name, [*CALIBRATIONS, 'schedule'])}")
    if not takes:
        raise ValueError("Calibration renders takes; give --prompt '...', three or four times for more of them.")
    for take in takes:
        take.check(card)
    method = CALIBRATIONS[name]
    setting = method.setting(takes[0].num_inference_steps, computed, threshold)
    shipped = load_recipe(name)
    lacks = "cross_attention" if card.num_joint_layers else None  # there, attention to the text is self-attention
    parts = tuple(part for part in shipped.parts if lacks not in getattr(part.site.config, "modules", []))
    form = replace(shipped, parts=parts, fits=())
    check_recipe(form, card, takes[0], model="")
    if method.linear:
        linear_map(FAMILIES[card.family].scheduler_of(card, takes[0]))
    return method, form, setting


def calibrate(name: str, renderer: Renderer, takes: list[Take], *, computed: int | None = None, threshold: float | None = None) -> Recipe:
    """The recipe with numbers that were measured on this model. Raises ValueError as `check_calibration` does."""
    return calibrate_each(name, renderer, takes, computed=[computed], threshold=[threshold])[0]


def calibrate_each(
    name: str,
    renderer: Renderer,
    takes: list[Take],
    *,
    computed: Sequence[int | None] = (None,),
    threshold: Sequence[float | None] = (None,),
) -> list[Recipe]:
    """One recipe for each pair of a budget and a threshold, from one measurement."""
    card, num_steps = renderer.family.card, takes[0].num_inference_steps
    checked = [check_calibration(name, card, takes, computed=one, threshold=other) for one in computed for other in threshold]
    method, form, _ = checked[0]
    measured = method.measure(renderer, takes, form)
    stamp = _stamp(method, card, takes[0]).to_dict()
    recipes = []
    for _, _, setting in checked:
        values = {**form.to_dict(), "calibration": stamp}
        for part, changes in zip(values.get("parts", [values]), measured(setting), strict=True):
            for what, settings in changes.items():
                part[what].update(settings)
        if setting.computed:
            values["name"] = f"{name}-{setting.computed}-of-{num_steps}"
        recipes.append(Recipe.from_mapping(values))
    return recipes


def _stamp(method: Method, card: ModelCard, take: Take) -> Calibration:
    """What the method's numbers are good for."""
    model, sampling = model_hash(card.path), sampling_of(card.sampled_by(take.scheduler), take)
    guidance_scale = take.guidance_scale if method.guided else None
    if method.any_steps:
        return Calibration(model, guidance_scale=guidance_scale)
    return Calibration(model, take.num_inference_steps, sampling.scheduler, sampling.flow_shift, guidance_scale)
