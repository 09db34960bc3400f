"""Whether a recipe can work on a model, a take and a gang. Knows cards and takes; loads no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...cache import Recipe
from ...cache.recipe.calibration import Calibration, Sampling
from ...cache.recipe.knobs import KNOBS
from ...parallel.groups.degrees import Degrees
from ..checkpoint.card import ModelCard
from ..take import Take
from .memory import model_shape, split_by_site


def check_recipe(recipe: Recipe, card: ModelCard, take: Take, model: str, degrees: Degrees | None = None) -> None:
    """Raise ValueError, with the mend, if a recipe cannot work on this model, take or gang. model: the model's hash."""
    card = card.sampled_by(take.scheduler)
    num_calls = card.num_calls(take.num_inference_steps)
    if card.calls_a_step > 1 and (recipe.calibrated or recipe.calibration or recipe.abscissa == "sigma"):
        raise ValueError(
            f"Recipe '{recipe.name}' counts steps of one model call each, and this model's scheduler makes {card.calls_a_step} a step; use another "
            f"recipe (interval, fbcache), or set scheduler=euler or unipc."
        )
    if recipe.calibration:
        recipe.calibration.check_model(model, recipe.name)
        recipe.calibration.check_steps(take.num_inference_steps, recipe.name)
        _own_shift(recipe.calibration, card).check_sampling(sampling_of(card, take), recipe.name)
    check_beside_schedule(recipe, take)
    if recipe.calibration or not recipe.calibrated:  # one that is still to be calibrated has no numbers yet
        _check_guidance(recipe, take)
    recipe.check(model_shape(card, take), num_calls)
    if not (recipe.calibration and recipe.calibration.scheduler):
        _check_sampler(recipe, card, take)
    if (derives_branch(recipe) or recipe.branches == "joint") and not take.is_guided(card):
        raise ValueError(f"Recipe '{recipe.name}' works on both guidance branches, but take '{take.name}' has one; use another recipe.")
    _check_timeline(recipe, take)
    _check_shift(recipe, card, take)
    if degrees is not None:
        check_gang(recipe, degrees, [take], card)


def check_beside_schedule(recipe: Recipe, take: Take) -> None:
    """Raise ValueError, with the mend, for a recipe whose steps calibration chooses, or has chosen, if the take has a schedule of its own."""
    chooses = recipe.calibrated and not all(KNOBS[part.trigger.name] for part in recipe.parts)
    chosen = recipe.calibration.num_inference_steps > 0 if recipe.calibration else chooses
    if chosen and take.schedule is not None:
        raise ValueError(
            f"Recipe '{recipe.name}' is calibrated for the steps that a sampler makes itself, and take '{take.name}' has a schedule of its own; use "
            f"another recipe (taylorseer, fora), or leave one of the two out."
        )


def sampling_of(card: ModelCard, take: Take) -> Sampling:
    """How the take is sampled on the model of that card, whose sampler is the take's already."""
    return Sampling(card.scheduler, card.flow_shift if take.flow_shift is None else take.flow_shift, (take.guidance_scale,))


def _own_shift(calibration: Calibration, card: ModelCard) -> Calibration:
    return calibration if calibration.flow_shift is not None else replace(calibration, flow_shift=card.flow_shift)


def _check_sampler(recipe: Recipe, card: ModelCard, take: Take) -> None:
    """For recipes that do not name the sampler that they were calibrated with. Where they do, nothing is left to check: the model's hash is of its
    scheduler's settings as well.
    """
    predictors = [part.predictor.build() for part in recipe.parts]
    asking = [predictor for predictor in predictors if predictor.needs_sampler]
    if asking:
        from ...cache.sampler.linear_map import linear_map  # torch and diffusers, for few recipes
        from ..families import FAMILIES

        sampler = linear_map(FAMILIES[card.family].scheduler_of(card, take))
        for predictor in asking:
            predictor.check_sampler(sampler)


def derives_branch(recipe: Recipe) -> bool:
    """Whether the recipe derives one guidance branch from the other, so that the model runs for one of them alone."""
    return any(part.site.name == "guidance" for part in recipe.parts)


def hands_on_tokens(recipe: Recipe, takes: Sequence[Take], card: ModelCard) -> bool:
    """Whether windows of one of the takes take over from each other what the recipe keeps of their tokens, so that the same ranks must run all."""
    return split_by_site(recipe)[0] is not None and any(take.timeline_for(card).shifts for take in takes)


def _check_timeline(recipe: Recipe, take: Take) -> None:
    """Of settings that say something of one timeline alone."""
    told = (("aggregate", recipe.aggregate, "mean", "banded", "segments"), ("border", recipe.border, "reset", "rollout", "chunks"))
    for setting, value, usual, timeline, what in told:
        if value != usual and take.timeline.name != timeline:
            raise ValueError(
                f"Recipe '{recipe.name}' has {setting}: {value}, which is about the {what} of timeline {timeline}, and take '{take.name}' is "
                f"rendered with {take.timeline.name}; leave {setting} out of the recipe, or set timeline={timeline}."
            )


def _check_shift(recipe: Recipe, card: ModelCard, take: Take) -> None:
    if not hands_on_tokens(recipe, [take], card):
        return
    here = f"Recipe '{recipe.name}' keeps tokens by latent frame where windows shift"
    mend = "use a recipe that keeps the model's output (planned, easycache), or set timeline.shift=none."
    if card.num_joint_layers:
        raise ValueError(f"{here}, and this model's blocks carry the text beside them; {mend}")
    if card.patch_size[0] > 1:
        raise ValueError(f"{here}, and this model's tokens are of {card.patch_size[0]} latent frames each; {mend}")
    overlap, hop = take.timeline.overlap, take.timeline.window - take.timeline.overlap
    if 2 * overlap < hop:
        raise ValueError(
            f"{here}, and take '{take.name}' has windows that share {overlap} latent frames and are {hop} apart, so that next to nothing would be "
            f"reused; raise timeline.overlap to half of timeline.window, {mend}"
        )


def check_gang(recipe: Recipe, degrees: Degrees, takes: Sequence[Take], card: ModelCard) -> None:
    """Raise ValueError, with the mend, if a recipe cannot work on a gang of that shape."""
    if degrees.window_degree > 1 and hands_on_tokens(recipe, takes, card):
        raise ValueError(
            f"Recipe '{recipe.name}' keeps tokens that windows which shift take over from each other, so that the same ranks must run all of them; "
            f"set parallel.window_degree to 1, or timeline.shift=none."
        )
    if derives_branch(recipe) and degrees.cfg_degree > 1:
        raise ValueError(
            f"Recipe '{recipe.name}' derives one guidance branch from the other, which saves nothing while both run at once; set "
            f"parallel.cfg_degree to 1."
        )


def _check_guidance(recipe: Recipe, take: Take) -> None:
    scales = [scale for part in recipe.parts if (scale := getattr(part.trigger.config, "guidance_scale", None)) is not None]
    if scales not in ([], [take.guidance_scale]):
        raise ValueError(
            f"Recipe '{recipe.name}' was calibrated at guidance_scale {scales[0]:g}, take '{take.name}' has {take.guidance_scale:g}; make them "
            f"equal, or run `longtake calibrate` with --guidance-scale {take.guidance_scale:g}."
        )
