"""A take that is interrupted and goes on, on another gang: the same film as without the break."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from longtake.bench.pool import GlooPool
from longtake.cache import Recipe, load_recipe
from longtake.cache.recipe.read import recipe_names
from longtake.cache.sampler.linear_map import linear_map
from longtake.cache.state import saving
from longtake.parallel.groups.degrees import Degrees
from longtake.parallel.groups.mesh import Mesh
from longtake.pipeline.checkpoint.card import ModelCard, read_card
from longtake.pipeline.families import FAMILIES
from longtake.pipeline.loop import snapshot
from longtake.pipeline.loop.denoise import Step
from longtake.pipeline.loop.render import Renderer, WholeTake, whole_take
from longtake.pipeline.options import ModelOptions
from longtake.pipeline.take import Take
from safetensors.torch import save_file

from same import assert_same, assert_same_film
from takes import tiny_recipe, tiny_take

pytestmark = pytest.mark.numerical

TAKE = tiny_take(num_frames=13, num_inference_steps=8, prompts=tiny_take().prompts[:1])
RECIPE = tiny_recipe("dicache")
THREE_WINDOWS = tiny_take(num_inference_steps=8, prompts=tiny_take().prompts[:1])


def _render_some(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe | None, folder: Path, layout: str, num_steps: int = 4) -> None:
    renderer = Renderer(card, ModelOptions(layout=layout), mesh=mesh)
    steps = renderer.steps(take, recipe)
    for _ in range(num_steps):
        next(steps)
    renderer.save(folder)
    steps.close()


def _go_on(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe | None, folder: Path) -> WholeTake:
    return whole_take(Renderer(card, mesh=mesh).steps(take, recipe, snapshot=folder))


def _assert_the_same(
    gloo_pool: GlooPool, card: ModelCard, take: Take, recipe: Recipe | None, folder: Path, gangs: list[Degrees], layout: str, num_steps: int = 4
) -> None:
    """The first steps on the first gang, the rest on each of the others."""
    whole = Renderer(card).render(take, recipe)
    gloo_pool.run(_render_some, gangs[0], card, take, recipe, folder, layout, num_steps)
    for gang in gangs[1:]:
        for rendered in gloo_pool.run(_go_on, gang, card, take, recipe, folder):
            assert_same_film(rendered, whole, f"on {gang}")
            if whole.trace is not None:
                ours, theirs = ([entry.forecast_error or 0.0 for entry in trace.entries] for trace in (rendered.trace, whole.trace))
                assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4), gang


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


@pytest.mark.parametrize("scheduler", ["unipc", "dpm++"])
def test_a_multistep_sampler_goes_on_in_the_midst_of_a_gap(gloo_pool: GlooPool, tiny_wan: Path, tmp_path: Path, scheduler: str) -> None:
    """It remembers outputs, forecasts among them, and the predictor those that it has to make up for: step 2 before the break, step 3 after it."""
    card, take = read_card(str(tiny_wan)), replace(TAKE, scheduler=scheduler)
    responses = linear_map(FAMILIES[card.family].scheduler_of(card, take)).responses
    numbers = {"responses": responses, "bending_by_step": [0.5] * 8, "amending_by_step": [0.8] * 8}
    recipe = load_recipe(tiny_recipe("planned"), {"trigger": {"max_surprise": 0.0}, "predictor": numbers})
    _assert_the_same(gloo_pool, card, take, recipe, tmp_path, [Degrees(ulysses_degree=2), Degrees(ring_degree=3), Degrees()], "even", num_steps=3)
    trace = Renderer(card).render(take, recipe).trace
    assert trace is not None
    assert [entry.decision for entry in trace.entries if entry.branch == "cond"][1:5] == ["compute", "reuse", "reuse", "compute"]


def test_what_cannot_go_on_is_refused(gloo_pool: GlooPool, tiny_wan: Path, tmp_path: Path) -> None:
    """On every rank alike, and with nothing changed."""
    card = read_card(str(tiny_wan))
    renderer, joint = Renderer(card), tiny_recipe("ra_cfgcache")
    with pytest.raises(ValueError, match="There is no snapshot in"):
        next(renderer.steps(TAKE, None, snapshot=tmp_path))
    with pytest.raises(ValueError, match="No take is running"):
        renderer.save(tmp_path)
    gloo_pool.run(_render_some, Degrees(cfg_degree=2), card, TAKE, joint, tmp_path, "even")
    changed = load_recipe(joint, {"trigger": {"threshold": 0.2}})
    refusals: list[tuple[Recipe | None, dict[str, Any], str, str]] = [
        (tiny_recipe("interval"), {}, "", "kept by another recipe than 'interval'"),
        (changed, {}, "", "kept by another recipe"),
        (None, {}, "", "holds a cache, and the take is rendered with none"),
        (joint, {"num_inference_steps": 9}, "", "is of a take of 8 steps, this one has 9"),
        (joint, {}, "another", "another film: its key is '[0-9a-f]{64}', this take's 'another'"),
        (joint, {"seed": 4}, "", "another film: its key is"),
        (joint, {"height": 48}, "", "another film: its key is"),
        (joint, {}, "", r"keep parallel\.cfg_degree"),
    ]
    for recipe, changes, film_key, message in refusals:
        with pytest.raises(ValueError, match=message):
            next(renderer.steps(replace(TAKE, **changes), recipe, snapshot=tmp_path, film_key=film_key))
    assert (
        gloo_pool.run(_refusal, 2, card, tmp_path / "empty")
        == [f"There is no snapshot in '{tmp_path / 'empty'}'; render the take from its start."] * 2
    )
    renderer.render(TAKE, joint)
    with pytest.raises(ValueError, match="No take is running"):
        renderer.save(tmp_path)


def _refusal(mesh: Mesh, card: ModelCard, folder: Path) -> str:
    with pytest.raises(ValueError) as refused:
        next(Renderer(card, mesh=mesh).steps(TAKE, None, snapshot=folder))
    return str(refused.value)


def _reached(renderer: Renderer, folder: Path) -> int:
    """The first step that a take goes on with; the whole take must then be the same."""
    steps = renderer.steps(TAKE, RECIPE, snapshot=folder)
    first = next(steps)
    assert isinstance(first, Step)
    assert_same(whole_take(steps).latents, renderer.render(TAKE, RECIPE).latents)  # what is read from a file lies elsewhere in memory
    return first.index


def _save_after(renderer: Renderer, folder: Path, *counts: int) -> None:
    """Snapshots after so many steps of one take."""
    steps = renderer.steps(TAKE, RECIPE)
    for count in range(1, max(counts) + 1):
        next(steps)
        if count in counts:
            renderer.save(folder)
    steps.close()


class _KilledError(Exception):
    pass


class _Killer:
    """Stands before all that changes files; `survives` so many of these calls and kills the next one, which leaves half a file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.survives = 1000
        for module, name in ((os, "replace"), (os, "unlink"), (saving, "save_file"), (snapshot, "save_file")):
            monkeypatch.setattr(module, name, partial(self._call, getattr(module, name)))

    def _call(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.survives -= 1
        if self.survives < 0:
            if real is save_file:
                Path(args[1]).write_bytes(b"half a fi")
            raise _KilledError
        return real(*args, **kwargs)


def test_a_kill_at_any_write_leaves_the_last_whole_snapshot(tiny_wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, the second time over what the first one left behind."""
    renderer, killer = Renderer(read_card(str(tiny_wan))), _Killer(monkeypatch)
    reached = []
    for fatal in range(100):
        folder = tmp_path / str(fatal)
        _save_after(renderer, folder, 1, 3)
        for num_steps in (4, 5):
            killer.survives = fatal
            with suppress(_KilledError):
                _save_after(renderer, folder, num_steps)
        done, killer.survives = killer.survives >= 0, 1000
        reached.append(_reached(renderer, folder))
        _save_after(renderer, folder, 6)
        assert _reached(renderer, folder) == 6
        assert len(list(folder.iterdir())) == 6, "two generations of three files, and nothing half-written"
        if done:
            break
    # Two tensor files, written and renamed, and the index's rename; then it is the new one, whatever is left to remove.
    assert reached == [3] * 5 + [5] * (len(reached) - 5) and len(reached) > 8


@pytest.mark.parametrize("kind", ["take", "cache", "index"])
@pytest.mark.parametrize("damage", ["cut", "gone", "mixed", "flipped"])
def test_a_damaged_snapshot_is_passed_over_and_says_so(
    tiny_wan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, damage: str
) -> None:
    renderer = Renderer(read_card(str(tiny_wan)))
    _save_after(renderer, tmp_path, 2, 3, 5)
    older, newer = sorted(tmp_path.glob(f"{kind}-*"))
    content = newer.read_bytes()
    if damage == "gone":
        newer.unlink()
    else:
        newer.write_bytes(
            {"cut": content[:-7], "mixed": older.read_bytes(), "flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]}[damage]
        )
    assert _reached(renderer, tmp_path) == 3
    assert newer.name in caplog.text or (kind, damage) == ("index", "gone"), "without its index a generation was never finished"
    older.write_bytes(b"")
    with pytest.raises(ValueError, match="There is no whole snapshot in"):
        next(renderer.steps(TAKE, RECIPE, snapshot=tmp_path))
