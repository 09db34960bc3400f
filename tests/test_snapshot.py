"""A take that is interrupted and goes on, on another gang: the same film as without the break."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from longtake.bench.pool import GlooPool
from longtake.cache import Recipe
from longtake.cache.recipe import recipe_names
from longtake.parallel import Degrees, Mesh
from longtake.pipeline.card import ModelCard, read_card
from longtake.pipeline.options import ModelOptions
from longtake.pipeline.render import Rendered, Renderer
from longtake.pipeline.take import Take

from takes import tiny_recipe, tiny_take

TAKE = tiny_take(num_frames=13, num_inference_steps=8, prompts=tiny_take().prompts[:1])
THREE_WINDOWS = tiny_take(num_inference_steps=8, prompts=tiny_take().prompts[:1])


def _render_some(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe | None, folder: Path, layout: str, num_steps: int = 4) -> None:
    renderer = Renderer(card, ModelOptions(layout=layout), mesh=mesh)
    steps = renderer.steps(take, recipe)
    for _ in range(num_steps):
        next(steps)
    renderer.save(folder)
    steps.close()


def _go_on(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe | None, folder: Path) -> Rendered:
    *_, rendered = Renderer(card, mesh=mesh).steps(take, recipe, snapshot=folder)
    assert isinstance(rendered, Rendered)
    return rendered


def _assert_the_same(
    gloo_pool: GlooPool, card: ModelCard, take: Take, recipe: Recipe | None, folder: Path, gangs: list[Degrees], layout: str, num_steps: int = 4
) -> None:
    """The first steps on the first gang, the rest on each of the others."""
    whole = Renderer(card).render(take, recipe)
    gloo_pool.run(_render_some, gangs[0], card, take, recipe, folder, layout, num_steps)
    for gang in gangs[1:]:
        for rendered in gloo_pool.run(_go_on, gang, card, take, recipe, folder):
            difference = (rendered.latents - whole.latents).abs().max().item()
            assert difference <= 1e-4, f"largest difference on {gang}: {difference:.2e}"
            assert (rendered.trace and rendered.trace.choices) == (whole.trace and whole.trace.choices)
            if whole.trace is not None:
                ours, theirs = ([entry.forecast_error or 0.0 for entry in trace.entries] for trace in (rendered.trace, whole.trace))
                assert ours == pytest.approx(theirs, rel=1e-3), gang


@pytest.mark.parametrize("recipe", ["none", *recipe_names()])
def test_half_on_2_ranks_goes_on_on_3_and_on_1(gloo_pool: GlooPool, tiny_wan: Path, tmp_path: Path, recipe: str) -> None:
    chosen = None if recipe == "none" else tiny_recipe(recipe)
    gangs = [Degrees(ulysses_degree=2), Degrees(ulysses_degree=3), Degrees()]
    _assert_the_same(gloo_pool, read_card(str(tiny_wan)), TAKE, chosen, tmp_path, gangs, "even")


@pytest.mark.parametrize("recipe", ["dicache", "taylorseer", "foresight"])
def test_text_beside_the_tokens_is_kept_once(gloo_pool: GlooPool, tiny_hunyuan: Path, tmp_path: Path, recipe: str) -> None:
    gangs = [Degrees(ulysses_degree=2), Degrees(ring_degree=3)]
    _assert_the_same(gloo_pool, read_card(str(tiny_hunyuan)), TAKE, tiny_recipe(recipe, "hunyuan_video"), tmp_path, gangs, "even")


@pytest.mark.parametrize("recipe", ["fbcache", "dmd"])
def test_branches_windows_and_whole_frames_move_as_well(gloo_pool: GlooPool, tiny_wan: Path, tmp_path: Path, recipe: str) -> None:
    gangs = [Degrees(cfg_degree=2, ulysses_degree=2), Degrees(window_degree=3), Degrees(cfg_degree=2), Degrees()]
    _assert_the_same(gloo_pool, read_card(str(tiny_wan)), THREE_WINDOWS, tiny_recipe(recipe), tmp_path, gangs, "frames")


@pytest.mark.parametrize(
    ("recipe", "num_steps"), [("ra_cfgcache", 3), ("easycache", 5), ("dicache", 4), ("dmd", 4), ("foresight", 5), ("meancache", 5), ("speca", 4)]
)
def test_branches_that_decide_together_go_on_each_with_its_own(
    gloo_pool: GlooPool, tiny_wan: Path, tmp_path: Path, recipe: str, num_steps: int
) -> None:
    """Both run at once and decide as one, but what they keep is of each; what follows the break is reused or forecast."""
    shipped = tiny_recipe(recipe)
    together = shipped if shipped.branches != "each" else replace(shipped, branches="joint")
    gangs = [Degrees(cfg_degree=2), Degrees(cfg_degree=2, ulysses_degree=2), Degrees(cfg_degree=2)]
    _assert_the_same(gloo_pool, read_card(str(tiny_wan)), TAKE, together, tmp_path, gangs, "even", num_steps)


def test_what_cannot_go_on_is_refused(gloo_pool: GlooPool, tiny_wan: Path, tmp_path: Path) -> None:
    card = read_card(str(tiny_wan))
    with pytest.raises(ValueError, match="There is no snapshot in"):
        next(Renderer(card).steps(TAKE, None, snapshot=tmp_path))
    gloo_pool.run(_render_some, Degrees(cfg_degree=2), card, TAKE, tiny_recipe("ra_cfgcache"), tmp_path, "even")
    with pytest.raises(ValueError, match="kept by another recipe than 'interval'"):
        next(Renderer(card).steps(TAKE, tiny_recipe("interval"), snapshot=tmp_path))
    with pytest.raises(ValueError, match=r"keep parallel\.cfg_degree"):
        next(Renderer(card).steps(TAKE, tiny_recipe("ra_cfgcache"), snapshot=tmp_path))
