"""The same film on any number of ranks, and the same as stock diffusers."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from longtake.bench.pool import GlooPool
from longtake.cache import Recipe, Replay, Shards, Trace, enable_cache, load_recipe
from longtake.cache.recipe.read import recipe_names
from longtake.cache.sums import ratio
from longtake.parallel.groups.degrees import Degrees
from longtake.parallel.groups.errors import CollectiveError
from longtake.parallel.groups.mesh import Mesh
from longtake.pipeline.checkpoint.card import ModelCard, read_card
from longtake.pipeline.loop.render import ModelOptions, Renderer, WholeTake
from longtake.pipeline.take import PromptAt, Take, TimelineSettings

from same import SAME, SAME_FRAME, SAME_IN_BFLOAT16, assert_same, assert_same_film
from takes import REFUSED_BY_HUNYUAN, tiny_recipe, tiny_take

pytestmark = pytest.mark.numerical

FULL = TimelineSettings("full", 0, 0)


def _render(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe | None, layout: str = "even") -> WholeTake:
    return Renderer(card, ModelOptions(layout=layout), mesh=mesh).render(take, recipe)


def _assert_the_same_film(gloo_pool: GlooPool, gangs: Sequence[tuple[Degrees, str]], *arguments: Any) -> None:
    """Against one rank."""
    alone = gloo_pool.run(_render, 1, *arguments)[0]
    for degrees, layout in gangs:
        for rendered in gloo_pool.run(_render, degrees, *arguments, layout):
            assert_same_film(rendered, alone, f"with {degrees}")


ONE_PROMPT = tiny_take().prompts[:1]
UNEVEN = (Degrees(ulysses_degree=3), Degrees(ring_degree=3))  # 16 tokens
EVEN = (Degrees(ulysses_degree=2), Degrees(ring_degree=4), Degrees(ring_degree=2, ulysses_degree=2))


def _gangs(recipe: str) -> list[tuple[Degrees, str]]:
    """For every recipe an uneven gang and an even one, in turns, so that each meets all kinds of recipes; without a cache all of them.

    What a recipe decides and keeps does not depend on how attention is shared, so that the full matrix would find no more.
    """
    if recipe == "none":
        return [(degrees, "even") for degrees in (*UNEVEN, *EVEN)]
    turn = recipe_names().index(recipe)
    return [(UNEVEN[turn % len(UNEVEN)], "even"), (EVEN[turn % len(EVEN)], "even")]


@pytest.mark.parametrize("recipe", ["none", *recipe_names()])
def test_same_film_on_1_to_4_ranks(gloo_pool: GlooPool, tiny_wan: Path, recipe: str) -> None:
    take = tiny_take(num_frames=13, num_inference_steps=8, prompts=ONE_PROMPT)
    _assert_the_same_film(gloo_pool, _gangs(recipe), read_card(str(tiny_wan)), take, None if recipe == "none" else tiny_recipe(recipe))


@pytest.mark.parametrize("recipe", ["none", *(name for name in recipe_names() if name not in REFUSED_BY_HUNYUAN)])
def test_hunyuan_video_is_the_same_film_on_1_to_4_ranks(gloo_pool: GlooPool, tiny_hunyuan: Path, recipe: str) -> None:
    take = tiny_take(num_frames=13, num_inference_steps=8, prompts=ONE_PROMPT)
    chosen = None if recipe == "none" else tiny_recipe(recipe, "hunyuan_video")
    _assert_the_same_film(gloo_pool, _gangs(recipe), read_card(str(tiny_hunyuan)), take, chosen)


BRANCHES_AND_WINDOWS = [
    (Degrees(cfg_degree=2), "even"),
    (Degrees(window_degree=3), "even"),
    (Degrees(cfg_degree=2, window_degree=2), "even"),
    (Degrees(cfg_degree=2, ulysses_degree=2), "frames"),
]
TOKENS_OF_WINDOWS = [
    (Degrees(ring_degree=5), "even"),
    (Degrees(ring_degree=2, ulysses_degree=2), "even"),
    (Degrees(window_degree=2, ring_degree=2), "frames"),
]


@pytest.mark.parametrize(
    ("recipe", "gangs"),
    [("fbcache", BRANCHES_AND_WINDOWS + TOKENS_OF_WINDOWS), ("easycache", BRANCHES_AND_WINDOWS), ("ra_cfgcache", BRANCHES_AND_WINDOWS)],
    ids=["fbcache", "easycache", "ra_cfgcache"],
)
def test_same_film_on_every_shape_of_gang(gloo_pool: GlooPool, tiny_wan: Path, recipe: str, gangs: list[tuple[Degrees, str]]) -> None:
    """Branches that decide for themselves, by the conditional one alone, and jointly; three windows."""
    take = tiny_take(num_inference_steps=8, prompts=ONE_PROMPT)
    _assert_the_same_film(gloo_pool, gangs, read_card(str(tiny_wan)), take, tiny_recipe(recipe))


@pytest.mark.parametrize("recipe", ["interval", "dicache", "racer"])
def test_joint_forecasts_are_those_of_a_batch(gloo_pool: GlooPool, tiny_wan: Path, recipe: str) -> None:
    """What predictors measure, too, is of both branches."""
    joint = replace(tiny_recipe(recipe), branches="joint")
    take = tiny_take(num_frames=13, num_inference_steps=8, prompts=ONE_PROMPT)
    gangs = [(Degrees(cfg_degree=2), "even"), (Degrees(cfg_degree=2, ulysses_degree=2), "even")]
    _assert_the_same_film(gloo_pool, gangs, read_card(str(tiny_wan)), take, joint)


def test_windows_of_hunyuan_video_are_the_same_on_3_ranks(gloo_pool: GlooPool, tiny_hunyuan: Path) -> None:
    card, gangs = read_card(str(tiny_hunyuan)), [(degrees, "even") for degrees in UNEVEN]
    _assert_the_same_film(gloo_pool, gangs, card, tiny_take(prompts=ONE_PROMPT), tiny_recipe("fbcache", "hunyuan_video"))


def _render_compiled(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe) -> list[WholeTake]:
    """On the mesh that the model is compiled on, and after it on a ring."""
    renderer = Renderer(card, ModelOptions(), mesh=mesh)
    renderer.family.transformer.compile_repeated_blocks(backend="aot_eager")
    first = renderer.render(take, recipe)
    renderer.bind(Mesh(Degrees(ring_degree=mesh.size), mesh.gang.group))
    return [first, renderer.render(take, recipe)]


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [Degrees(ulysses_degree=2), Degrees(ring_degree=2)], ids=str)
def test_compiled_blocks_are_sharded(gloo_pool: GlooPool, tiny_wan: Path, degrees: Degrees) -> None:
    """More than one block, and a model that is not sharded beside it: code is compiled once, where it is seen first."""
    card, take, recipe = read_card(str(tiny_wan)), tiny_take(num_frames=13, num_inference_steps=8, prompts=ONE_PROMPT), tiny_recipe("fbcache")
    [[alone, _]] = gloo_pool.run(_render_compiled, 1, card, take, recipe)
    for films in gloo_pool.run(_render_compiled, degrees, card, take, recipe):
        for film in films:
            assert_same_film(film, alone)


def _replay(mesh: Mesh, card: ModelCard, trace: Trace, dtype: str) -> WholeTake:
    """With a threshold that would decide otherwise."""
    recipe = load_recipe("fbcache", {"trigger": {"threshold": 0.0}})
    return Renderer(card, ModelOptions(dtype=dtype), mesh=mesh).render(tiny_take(), recipe, Replay(trace))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_replayed_trace_is_the_same_on_any_gang_in_any_dtype(gloo_pool: GlooPool, tiny_wan: Path, dtype: str) -> None:
    card = read_card(str(tiny_wan))
    recorded = gloo_pool.run(_render, 1, card, tiny_take(), "fbcache", 0.3)[0]
    assert recorded.trace.summary()["reuse"] > 0
    for degrees in (1, 3, Degrees(cfg_degree=2, ring_degree=2)):
        for rendered in gloo_pool.run(_replay, degrees, card, recorded.trace, dtype):
            assert rendered.trace.choices == recorded.trace.choices
            assert_same(rendered.latents, recorded.latents, f"with {degrees}", SAME if dtype == "float32" else SAME_IN_BFLOAT16)


def test_demo_model_renders_the_same_film_on_2_ranks(gloo_pool: GlooPool) -> None:
    take = Take(
        name="demo",
        prompts=(PromptAt(0, "a red circle moves right over a grey background"),),
        negative_prompt="",
        seed=1,
        num_frames=49,
        height=96,
        width=96,
        num_inference_steps=10,
        guidance_scale=4.0,
        flow_shift=None,
        timeline=TimelineSettings("windows", 9, 3),
        noise="frame",
    )
    _assert_the_same_film(
        gloo_pool, [(Degrees(ulysses_degree=2), "even")], read_card("demo"), take, load_recipe("fbcache", {"trigger": {"threshold": 0.25}})
    )


def _render_in_two_gangs(mesh: Mesh, card: ModelCard, takes: tuple[Take, Take], recipe: Recipe) -> WholeTake:
    """Ranks 0 and 1 render one take, 2 and 3 another, each in a group of its own: their decisions come at different steps."""
    assert mesh.gang.group is not None
    everybody = dist.get_process_group_ranks(mesh.gang.group)
    groups = [dist.new_group(everybody[start : start + 2]) for start in (0, 2)]
    which = mesh.rank // 2
    return Renderer(card, mesh=Mesh(Degrees(ulysses_degree=2), groups[which])).render(takes[which], recipe)


def test_two_gangs_share_no_collective(gloo_pool: GlooPool, tiny_wan: Path) -> None:
    card, recipe = read_card(str(tiny_wan)), tiny_recipe("fbcache")
    takes = tuple(tiny_take(num_inference_steps=8, num_frames=frames, seed=frames, prompts=ONE_PROMPT) for frames in (13, 41))
    alone = [Renderer(card).render(take, recipe) for take in takes]
    rendered = gloo_pool.run(_render_in_two_gangs, Degrees(ring_degree=4), card, takes, recipe)
    assert alone[0].trace is not None and alone[1].trace is not None
    assert len(alone[0].trace.entries) != len(alone[1].trace.entries)
    for rank, film in enumerate(rendered):
        assert_same_film(film, alone[rank // 2], f"on rank {rank}")


def _decide_on_one_sided_motion(mesh: Mesh, card: ModelCard, threshold: float) -> tuple[float, float, str]:
    """Two steps of a cached model; between them only the last frames change, which the last rank alone holds.

    Returns the signal of this rank's own tokens, the common one and the decision.
    """
    local: list[torch.Tensor] = []

    def reduce(sums: torch.Tensor) -> torch.Tensor:
        local.append(sums)
        return mesh.sequence.sum(sums)

    transformer = Renderer(card, mesh=mesh).family.transformer
    recipe = load_recipe("fbcache", {"trigger": {"threshold": threshold}, "guards": {"first_steps": 1, "last_steps": 0}})
    cached = enable_cache(transformer, recipe, num_inference_steps=2, shards=Shards(reduce))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 6, 8, 8, generator=generator)
    prompt = torch.randn(1, 8, 128, generator=generator)
    moved = latents.clone()
    moved[:, :, 4:] += torch.randn(1, 4, 2, 8, 8, generator=generator)
    with torch.no_grad():
        for step, frames in enumerate((latents, moved)):
            with cached.step(step, 500.0, "cond"):
                transformer(frames, torch.tensor([500.0]), prompt)
    entry = cached.trace.entries[-1]
    assert entry.value is not None
    return ratio(local[-1]), entry.value, entry.decision


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_motion_in_one_ranks_frames_only_is_decided_alike(gloo_pool: GlooPool, tiny_wan: Path, num_ranks: int) -> None:
    """A rank that decided alone would skip blocks that another computes, and both would wait for ever in the next all-to-all."""
    card = read_card(str(tiny_wan))
    measured = gloo_pool.run(_decide_on_one_sided_motion, num_ranks, card, 0.0)
    own, common = [m[0] for m in measured], measured[0][1]
    assert own[0] < 0.7 * common < common < 0.9 * own[-1], f"the ranks' own signals {own} must lie far to both sides of {common}"
    for threshold in ((own[0] + common) / 2, (common + own[-1]) / 2):
        assert own[0] < threshold < own[-1], "each threshold splits the ranks that decide alone"
        decisions = {m[2] for m in gloo_pool.run(_decide_on_one_sided_motion, num_ranks, card, threshold)}
        assert decisions == {"compute" if common >= threshold else "reuse"}


def _render_on_unlike_machines(mesh: Mesh, card: ModelCard, recipe: Recipe, unlike: int) -> WholeTake:
    """Rank `unlike` sees other latents and timesteps than the rest, as if it had computed them with other kernels, only far worse."""
    renderer, generator = Renderer(card, mesh=mesh), torch.Generator().manual_seed(0)

    def disturb(module: torch.nn.Module, args: Any) -> Any:
        latents, timestep = args
        return latents + torch.randn(latents.shape, generator=generator), timestep * torch.rand(1, generator=generator)

    if mesh.rank == unlike:
        renderer.family.transformer.register_forward_pre_hook(disturb)
    return renderer.render(tiny_take(num_frames=13, num_inference_steps=8, prompts=ONE_PROMPT), recipe)


RESIDUAL: dict[str, Any] = {"site": {"name": "output", "keep": "residual"}}
UNLIKE = [
    tiny_recipe("seacache"),
    tiny_recipe("easycache"),
    load_recipe(tiny_recipe("teacache"), {"site": {"probe": "timestep"}, "trigger": {"threshold": 0.5}}),
    load_recipe({**tiny_recipe("racer").to_dict(), **RESIDUAL}, {"guards": {"max_risk": 0.4}}),
    load_recipe(
        {**tiny_recipe("planned").to_dict(), **RESIDUAL, "predictor": {"name": "reuse"}},
        {"trigger": {"expected_errors": [1] * 8, "max_surprise": 0.4}},
    ),
]


@pytest.mark.parametrize("recipe", UNLIKE, ids=lambda recipe: recipe.name)
def test_ranks_decide_alike_on_unlike_machines(gloo_pool: GlooPool, tiny_wan: Path, recipe: Recipe) -> None:
    """Also from what all of them hold: a rank that decided from its own latents would skip blocks that the others compute."""
    card = read_card(str(tiny_wan))
    plain, disturbed = (gloo_pool.run(_render_on_unlike_machines, 1, card, recipe, unlike)[0].trace.choices for unlike in (1, 0))
    assert plain != disturbed, "alone, the two machines would decide otherwise"
    for gang in (Degrees(ulysses_degree=2), Degrees(cfg_degree=2, ulysses_degree=2)):
        first, *others = (rendered.trace.choices for rendered in gloo_pool.run(_render_on_unlike_machines, gang, card, recipe, 1))
        assert all(other == first for other in others)


def _call_with_token_timesteps(mesh: Mesh, card: ModelCard) -> torch.Tensor:
    transformer = Renderer(card, mesh=mesh).family.transformer
    generator = torch.Generator().manual_seed(0)
    latents, prompt = torch.randn(1, 4, 3, 6, 6, generator=generator), torch.randn(1, 8, 128, generator=generator)
    timesteps = torch.rand(1, 27, generator=generator) * 1000
    with torch.no_grad():
        output: torch.Tensor = transformer(latents, timesteps, prompt, return_dict=False)[0]
    return output


def test_a_timestep_a_token_is_sharded_with_the_tokens(gloo_pool: GlooPool, tiny_wan: Path) -> None:
    card = read_card(str(tiny_wan))
    alone = gloo_pool.run(_call_with_token_timesteps, 1, card)[0]
    for num_ranks in (2, 3):
        for output in gloo_pool.run(_call_with_token_timesteps, num_ranks, card):
            assert_same(output, alone, f"on {num_ranks} ranks")


def test_a_longer_takes_first_noise_is_the_same() -> None:
    from longtake.pipeline.noise import frame_noise

    whole = frame_noise(7, range(9), 4, 3, 3)
    assert torch.equal(frame_noise(7, range(5), 4, 3, 3), whole[:, :, :5])
    assert torch.equal(frame_noise(7, range(4, 6), 4, 3, 3), whole[:, :, 4:6])
    assert not torch.equal(whole[:, :, 0], whole[:, :, 1])
    assert not torch.equal(frame_noise(8, range(9), 4, 3, 3), whole)


def _decode(mesh: Mesh, card: ModelCard, num_latents: int) -> torch.Tensor:
    family = Renderer(card, mesh=mesh).family
    latents = torch.randn(1, card.latent_channels, num_latents, 6, 4, generator=torch.Generator().manual_seed(0))
    return torch.cat(list(family.decode(latents)))


@pytest.mark.parametrize("model", ["tiny_wan", "tiny_hunyuan"])
def test_rows_decoded_by_a_gang_are_the_same_frames(gloo_pool: GlooPool, model: str, request: pytest.FixtureRequest) -> None:
    """Six rows of latents: on 4 ranks, which are cfg x ring, some hold two rows and some one."""
    card = read_card(str(request.getfixturevalue(model)))
    alone = gloo_pool.run(_decode, 1, card, 6)[0]
    for degrees in (2, 3, Degrees(cfg_degree=2, ring_degree=2)):
        for frames in gloo_pool.run(_decode, degrees, card, 6):
            assert_same(frames, alone, f"on {degrees} ranks", SAME_FRAME)


def _render_until_a_rank_raises(mesh: Mesh, card: ModelCard) -> str:
    """The last rank raises in the second block of the second step; what the first one says then."""
    group = dist.new_group(timeout=timedelta(seconds=30))
    renderer = Renderer(card, mesh=Mesh(mesh.degrees, group))
    mesh.gang.sum(torch.zeros(1))  # all have loaded; from here on nobody is late
    calls = iter(range(100))

    def fail(module: torch.nn.Module, args: object) -> None:
        if next(calls) == 2 and mesh.rank == mesh.size - 1:
            raise ZeroDivisionError("in a block")

    renderer.family.transformer.blocks[1].register_forward_pre_hook(fail)
    try:
        renderer.render(tiny_take(guidance_scale=1.0, num_frames=17, prompts=tiny_take().prompts[:1], timeline=FULL), None)
    except ZeroDivisionError as error:
        return str(error)
    except CollectiveError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("degrees", [Degrees(ulysses_degree=2), Degrees(ring_degree=3)], ids=str)
def test_a_rank_that_raises_does_not_leave_the_others_waiting(gloo_pool: GlooPool, tiny_wan: Path, degrees: Degrees) -> None:
    first, *_, last = gloo_pool.run(_render_until_a_rank_raises, degrees, read_card(str(tiny_wan)))
    assert last == "in a block"
    assert first.startswith("step 3: blocks.1.attn1: ")
    assert "axis failed on its rank 0 of" in first


def _own_parts(renderer: Renderer) -> list[tuple[object, ...]]:
    """What is not a module's own, of each module of transformer and decoder: its processor, its hooks, methods of this one module."""
    return [
        (
            name,
            type(module),
            type(getattr(module, "processor", None)),
            [*module._forward_hooks, *module._forward_pre_hooks],
            sorted(key for key, value in vars(module).items() if callable(value) and hasattr(type(module), key)),
        )
        for part in (renderer.family.transformer, renderer.family.vae)
        for name, module in part.named_modules()
    ]


def _render_in_one_gang_after_another(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe) -> tuple[list[WholeTake], list[torch.Tensor], int]:
    """One model, loaded once, on ulysses 2, alone, on ring 2, as cfg 2 and alone again; films, decoded frames, and how many meshes live on."""
    renderer = Renderer(card)
    stock, films, frames, meshes = _own_parts(renderer), [], [], []
    for degrees in (Degrees(ulysses_degree=2), None, Degrees(ring_degree=2), Degrees(cfg_degree=2), None):
        renderer.bind(Mesh(degrees, mesh.gang.group) if degrees else Mesh())
        meshes.append(weakref.ref(renderer.mesh))
        assert (_own_parts(renderer) == stock) == (degrees is None)
        films.append(renderer.render(take, recipe))
        frames.append(torch.cat(list(renderer.family.decode(films[-1].latents))))
    gc.collect()
    return films, frames, sum(one() is not None for one in meshes)


@pytest.mark.parametrize("model", ["tiny_wan", "tiny_hunyuan"])
def test_a_loaded_model_is_bound_to_one_gang_after_another(gloo_pool: GlooPool, model: str, request: pytest.FixtureRequest) -> None:
    """Nothing of a mesh stays on the model or is kept alive by it: the modules are diffusers' own in between, and so is the film."""
    card = read_card(str(request.getfixturevalue(model)))
    take = tiny_take(num_frames=13, num_inference_steps=8, prompts=ONE_PROMPT)
    recipe = tiny_recipe("fbcache", "wan" if model == "tiny_wan" else "hunyuan_video")
    for films, frames, num_meshes in gloo_pool.run(_render_in_one_gang_after_another, 2, card, take, recipe):
        assert num_meshes == 1
        assert torch.equal(films[1].latents, films[-1].latents)
        for film, shown in zip(films, frames, strict=True):
            assert_same_film(film, films[-1])
            assert_same(shown, frames[-1], "of the frames", SAME_FRAME)


def _bind_again(mesh: Mesh, card: ModelCard) -> str:
    try:
        Renderer(card, ModelOptions(shard="gang"), mesh=mesh).bind(Mesh(mesh.degrees, mesh.gang.group))
    except ValueError as error:
        return str(error)
    return ""


def test_weights_that_are_shared_out_stay_in_their_gang(gloo_pool: GlooPool, tiny_wan: Path) -> None:
    assert all("model.shard is gang" in said for said in gloo_pool.run(_bind_again, 2, read_card(str(tiny_wan))))
