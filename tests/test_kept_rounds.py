"""Rounds that are kept: a take that begins as one that was rendered goes on from there, as if it had been rendered whole."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from longtake.bench.pool import GlooPool
from longtake.cache import Recipe, load_recipe
from longtake.jobs.events import Event, Note, Stepped
from longtake.jobs.folder.folder import GROWING, ROUNDS
from longtake.jobs.rendering import Rendering, render
from longtake.jobs.settings.config import load_job, resolve_takes
from longtake.jobs.settings.planning import plan_job
from longtake.parallel.groups.degrees import Degrees
from longtake.parallel.groups.mesh import Mesh
from longtake.pipeline.checkpoint.card import ModelCard, read_card
from longtake.pipeline.film.compare import compare_frames
from longtake.pipeline.film_key import round_keys
from longtake.pipeline.kept_rounds import KeptRounds
from longtake.pipeline.loop.denoise import Step
from longtake.pipeline.loop.generations import SnapshotError
from longtake.pipeline.loop.render import Renderer, WholeTake, whole_take
from longtake.pipeline.options import ModelOptions
from longtake.pipeline.take import PromptAt, SeedAt, Take
from safetensors.torch import load_file
from test_film import read_film
from test_rollout import ISOLATED, TAKE

from same import assert_same, assert_same_film
from takes import tiny_recipe

pytestmark = pytest.mark.numerical

LATE_PROMPT = (*TAKE.prompts, PromptAt(34, "a red circle stands still"))  # heard by the last of the four chunks, of frames 33 to 40
CHANGES: dict[str, tuple[dict[str, Any], int]] = {
    "the same": ({}, 3),
    "another prompt": ({"prompts": LATE_PROMPT}, 3),
    "another seed": ({"reseeds": (SeedAt(26, 7),)}, 2),
    "longer": ({"num_frames": 49}, 4),
    "shorter": ({"num_frames": 37}, 3),
    "another seed from the start": ({"seed": 11}, 0),
}


def _kept(card: ModelCard, take: Take, recipe: Recipe | None, folder: Path) -> KeptRounds:
    return KeptRounds(folder, round_keys(card, "", take, recipe, ModelOptions()))


def _render(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe | None, folder: Path | None = None) -> tuple[WholeTake, int]:
    """With the number of steps that were made."""
    kept = None if folder is None else _kept(card, take, recipe, folder)
    items = list(Renderer(card, mesh=mesh).steps(take, recipe, kept=kept))
    return whole_take(items), sum(isinstance(one, Step) for one in items)


@pytest.mark.parametrize(
    ("change", "recipe", "take"),
    [*((change, "none", TAKE) for change in CHANGES), ("another seed", "fbcache", TAKE), ("another prompt", "planned", ISOLATED)],
    ids=lambda value: value if isinstance(value, str) else value.timeline.context,
)
def test_what_follows_kept_rounds_is_as_without_them(
    gloo_pool: GlooPool, tiny_wan: Path, tmp_path: Path, change: str, recipe: str, take: Take
) -> None:
    """To the bit on as many ranks; behind rounds of another gang, the same film."""
    card, chosen, two = read_card(str(tiny_wan)), None if recipe == "none" else tiny_recipe(recipe), Degrees(ulysses_degree=2)
    changes, num_kept = CHANGES[change]
    changed = replace(take, **changes)
    gloo_pool.run(_render, two, card, take, chosen, tmp_path)
    assert _kept(card, changed, chosen, tmp_path).count() == num_kept
    whole, num_steps = gloo_pool.run(_render, two, card, changed, chosen)[0]
    rounds = len(changed.timeline_for(card).rounds)
    for rendered, made in gloo_pool.run(_render, two, card, changed, chosen, tmp_path):
        assert torch.equal(rendered.latents, whole.latents)
        assert made * rounds == num_steps * (rounds - num_kept)
        if whole.trace is not None:
            assert rendered.trace == whole.trace
    assert _kept(card, changed, chosen, tmp_path).count() == rounds - 1
    if change == "another prompt":
        [(alone, _)] = gloo_pool.run(_render, 1, card, changed, chosen, tmp_path)
        assert_same_film(alone, whole, "behind rounds of a gang of two")


def test_a_damaged_round_is_rendered_again(tiny_wan: Path, tmp_path: Path) -> None:
    card = read_card(str(tiny_wan))
    whole, _ = _render(Mesh(), card, TAKE, None, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"round-000{number}.safetensors" for number in (1, 2, 3, 4)]
    content = bytearray(files[1].read_bytes())
    content[-1] ^= 1
    for damage in (bytes(content), bytes(content[:50]), b""):
        files[1].write_bytes(damage)
        assert _kept(card, TAKE, None, tmp_path).count() == 1
        again, steps = _render(Mesh(), card, TAKE, None, tmp_path)
        assert torch.equal(again.latents, whole.latents)
        assert steps == 3 * TAKE.num_inference_steps
        assert files[1].read_bytes()[-1] == content[-1] ^ 1


def _job(model: Path, output: Path, **changes: Any) -> dict[str, Any]:
    take = {"name": "one", "prompts": [{"frame": 0, "text": "a red circle"}, {"frame": 20, "text": "a blue square"}], "num_frames": 41, **changes}
    timeline = {"name": "rollout", "window": 17, "overlap": 8}
    parallel = {"threads": 1, "num_ranks": 1}
    return {"model": str(model), "output": str(output), "num_inference_steps": 3, "timeline": timeline, "takes": [take], "parallel": parallel}


def test_a_stopped_job_goes_on_with_another_seed(ray_cluster: str, tiny_wan: Path, tmp_path: Path) -> None:
    """Stopped in its last chunk, it can be played; its first chunks are kept, the last one gets the new seed."""
    output, notes, steps = tmp_path / "out", list[str](), list[int]()

    def note(event: Event) -> None:
        notes.extend([event.text] if isinstance(event, Note) and "were rendered before" in event.text else [])
        steps.extend([event.step] if isinstance(event, Stepped) else [])

    with Rendering(_job(tiny_wan, output)) as rendering:
        for event in rendering:
            if isinstance(event, Stepped) and event.step == 8:
                break
    assert len(list((output / "one" / ROUNDS).iterdir())) == 2
    played = read_film(output / "one" / GROWING)
    assert len(played) >= 17
    job = {**_job(tiny_wan, output, reseed=[{"at": "4.5s", "seed": 5}]), "save_latents": True}
    result = render(job, on_event=note)["one"]
    assert notes == ["take 'one': its first 29 frames (3.62 s, 2 of 3 chunks) were rendered before and are kept"]
    assert steps == [7, 8, 9]
    [planned] = Rendering(job).plan.takes
    assert planned.is_done
    fresh = Renderer(read_card(str(tiny_wan))).render(planned.take, None).latents
    assert_same(load_file(result.folder / "latents.safetensors")["latents"], fresh)
    assert result.film is not None
    film = read_film(result.film)
    assert len(film) == 41
    assert compare_frames([played], [film[: len(played)]]).psnr > 25
    assert not (output / "one" / GROWING).exists()


def test_rounds_of_a_film_that_was_moved_aside_are_taken_over(tiny_wan: Path, tmp_path: Path) -> None:
    card, aside, here = read_card(str(tiny_wan)), tmp_path / "aside", tmp_path / "here"
    _render(Mesh(), card, TAKE, None, aside)
    before = {path.name: path.read_bytes() for path in aside.iterdir()}
    changed = replace(TAKE, reseeds=(SeedAt(26, 7),))
    _kept(card, changed, None, here).take_over(aside)
    assert sorted(path.name for path in here.iterdir()) == sorted(before)[:2]
    rendered, steps = _render(Mesh(), card, changed, None, here)
    assert steps == 2 * TAKE.num_inference_steps
    assert torch.equal(rendered.latents, _render(Mesh(), card, changed, None)[0].latents)
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before, "the film of before is as it was"
    _kept(card, replace(TAKE, seed=9), None, here).take_over(aside)
    assert not list(here.iterdir())


def test_where_the_cache_goes_on_over_borders_rounds_serve_this_very_film_and_with_a_snapshot(tiny_wan: Path, tmp_path: Path) -> None:
    """To the bit, in mid-round and at a border; without the snapshot the take begins anew."""
    card, recipe = read_card(str(tiny_wan)), load_recipe({**tiny_recipe("planned").to_dict(), "border": "keep"})
    keys = [round_keys(card, "", take, recipe, ModelOptions()) for take in (TAKE, replace(TAKE, num_frames=49))]
    assert not set(keys[0]) & set(keys[1])
    renderer = Renderer(card)
    whole = renderer.render(TAKE, recipe)
    for number, broken_after in enumerate((TAKE.num_inference_steps + 3, TAKE.num_inference_steps + 1)):
        kept = KeptRounds(tmp_path / str(number), keys[0], stand_alone=False)
        steps = renderer.steps(TAKE, recipe, kept=kept)
        for _ in range(broken_after):
            next(steps)
        renderer.save(tmp_path / f"snapshots {number}")
        steps.close()
        items = list(renderer.steps(TAKE, recipe, kept=kept, snapshot=tmp_path / f"snapshots {number}"))
        assert whole_take(items).latents.equal(whole.latents)
        assert sum(isinstance(one, Step) for one in items) == 4 * TAKE.num_inference_steps - (broken_after - 1)
        assert sum(isinstance(one, Step) for one in renderer.steps(TAKE, recipe, kept=kept)) == 4 * TAKE.num_inference_steps
    (tmp_path / "0" / "round-0001.safetensors").unlink()
    with pytest.raises(SnapshotError, match="goes on after round 1, and round 1 is not whole"):
        list(renderer.steps(TAKE, recipe, kept=replace(kept, folder=tmp_path / "0"), snapshot=tmp_path / "snapshots 0"))


def test_another_take_leaves_what_a_killed_one_had_done_aside(ray_cluster: str, tiny_wan: Path, tmp_path: Path) -> None:
    """Here one with another seed; the first one again then goes on from nothing that is not its own."""
    plan = plan_job(load_job(_job(tiny_wan, tmp_path)))
    [planned] = plan.takes
    kept = KeptRounds(planned.folder / ROUNDS, planned.rounds)
    planned.folder.mkdir()
    renderer = Renderer(plan.card)
    steps = renderer.steps(planned.take, plan.recipe, film_key=planned.film_key, kept=kept)
    while kept.count() < 2:
        next(steps)
    steps.close()
    before = {path.name: path.read_bytes() for path in kept.folder.iterdir()}
    events = list(Rendering(_job(tiny_wan, tmp_path, seed=12)))
    aside = planned.folder.with_name("one@unfinished")
    assert {path.name: path.read_bytes() for path in (aside / ROUNDS).iterdir()} == before
    assert f"take 'one': what lay in its folder is now in {aside}" in [event.text for event in events if isinstance(event, Note)]


def test_where_seeds_begin_is_said(tiny_wan: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    Rendering(_job(tiny_wan, tmp_path, reseed=[{"at": "4.5s", "seed": 5}]), say=lines.append)
    assert lines == [
        "take 'one': the prompt at frame 20 (2.50 s) is first rendered for frames 17 to 28",
        "take 'one': seed 5 holds from frame 29 (3.62 s) on, where the chunk of frame 36 begins",
    ]
    with pytest.raises(ValueError, match=r"Take 'one': reseed at 4.5s has no seed; write"):
        Rendering(_job(tiny_wan, tmp_path, reseed=[{"at": "4.5s"}]))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"timeline": {"name": "windows", "window": 17, "overlap": 8}},
            "reseed is given, and with timeline windows all frames depend .*timeline=rollout",
        ),
        ({"reseed": [{"frame": 41, "seed": 7}]}, "reseed is at frame 41, but the take has 41 frames; make it longer"),
        ({"reseed": [{"frame": 16, "seed": 7}]}, "reseed is at frame 16, in the first chunk, which ends at frame 16; set seed instead"),
        (
            {"reseed": [{"frame": 17, "seed": 7}, {"frame": 20, "seed": 8}]},
            r"reseeds fall into the chunks that begin at frames \[17, 17\]; they must ascend, one a chunk",
        ),
        ({"reseed": [{"frame": 17, "seed": -1}]}, "reseed has seed -1; it must be from 0"),
        ({"reseed": [{"at": "soon", "seed": 7}]}, "reseed is at 'soon'; write a time as 2.5s"),
        ({"reseed": [{"at": "3s", "frame": 24, "seed": 7}]}, "reseed has frame 24 and at 3s; keep one of the two"),
    ],
)
def test_refused(tiny_wan: Path, tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    job = load_job(_job(tiny_wan, tmp_path, **{"reseed": [{"frame": 20, "seed": 1}], **changes}))
    with pytest.raises(ValueError, match=f"Take 'one': {match}"):
        resolve_takes(job, read_card(str(tiny_wan)), Fraction(8))
