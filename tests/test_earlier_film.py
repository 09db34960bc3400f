"""Takes that go on from an existing film: what is shown of it, the frames after it, gangs, breaks, whole jobs and refusals."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from longtake.bench.pool import GlooPool
from longtake.jobs.events import Event, Stepped
from longtake.jobs.folder.folder import GROWING
from longtake.jobs.rendering import render
from longtake.jobs.settings.config import load_job, resolve_takes
from longtake.jobs.settings.planning import plan_job
from longtake.parallel.groups.degrees import Degrees
from longtake.parallel.groups.mesh import Mesh
from longtake.pipeline.checkpoint.card import ModelCard, read_card
from longtake.pipeline.demo.scene import draw, sample_scene
from longtake.pipeline.earlier_film import Encoded, encode_film, find_film
from longtake.pipeline.families import FAMILIES
from longtake.pipeline.film.read import probe
from longtake.pipeline.film_key import film_key, round_keys
from longtake.pipeline.kept_rounds import KeptRounds
from longtake.pipeline.loop.denoise import Step
from longtake.pipeline.loop.render import Renderer, WholeTake, whole_take
from longtake.pipeline.loop.rounds import Finished
from longtake.pipeline.options import ModelOptions
from longtake.pipeline.take import SeedAt, Take
from safetensors.torch import load_file
from test_film import read_film, smooth_clip, write_film
from test_rollout import ISOLATED, TAKE, rollout_by_hand
from torch import Tensor

from same import assert_same, assert_same_film
from takes import tiny_recipe

pytestmark = pytest.mark.numerical

NUM_FRAMES = 41


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny model's size and rate."""
    return write_film(tmp_path_factory.mktemp("films") / "film.mp4", smooth_clip(NUM_FRAMES, 32, 32), fps=8)


def _after(film: Path, take: Take = TAKE) -> Take:
    """6 latent frames, 2 at a time, behind an anchor and 2 latent frames of the film."""
    return replace(take, num_frames=24, prompts=(take.prompts[0], replace(take.prompts[1], frame=12)), continue_from=find_film(take.name, str(film)))


def _video(film: Path) -> Tensor:
    frames = torch.from_numpy(read_film(film)).float() / 255
    return frames.permute(3, 0, 1, 2)[None] * 2 - 1


@torch.no_grad()
def test_what_is_shown_of_a_film(tiny_wan: Path, film: Path) -> None:
    """The first frame by itself, and the last ones as a clip of their own, by the stock VAE."""
    encoded = encode_film(Renderer(read_card(str(tiny_wan))).family, _after(film), Mesh())
    vae = AutoencoderKLWan.from_pretrained(tiny_wan / "vae")
    first, end = (vae.encode(part).latent_dist.mode() for part in (_video(film)[:, :, :1], _video(film)[:, :, -21:]))
    assert sorted(encoded.context) == [-3, -2, -1]
    assert_same(encoded.context[-3], first)
    assert_same(torch.cat([encoded.context[-2], encoded.context[-1]], dim=2), end[:, :, -2:])
    assert_same(encoded.end, end)


def test_context_is_as_in_an_encoding_of_the_whole_film(tmp_path: Path) -> None:
    """With the demo model, whose latents have a spread of 0.9: a random VAE remembers frames for longer than one that learnt."""
    card = read_card("demo")
    family = FAMILIES["wan"].load(card, torch.float32, torch.device("cpu"), torch.device("cpu"))
    film = write_film(tmp_path / "film.mp4", draw(sample_scene(np.random.default_rng(0)), 49), fps=16)
    take = replace(_after(film), height=card.height, width=card.width)
    context = encode_film(family, take, Mesh()).context
    whole = family.encode(torch.from_numpy(read_film(film)).float() / 255)
    shown = torch.cat([context[-3], context[-2], context[-1]], dim=2)
    errors = (shown - whole[:, :, [0, -2, -1]]).square().mean((0, 1, 3, 4)).sqrt()
    special = (family.encode(torch.from_numpy(read_film(film)[-5:]).float() / 255) - whole[:, :, -2:]).square().mean((0, 1, 3, 4)).sqrt()
    print(f"rms from the whole film's latents: {errors.tolist()}; of an encoding that begins with the context: {special.tolist()}")
    assert errors[0] < 1e-5
    assert errors.max() < 0.05
    assert special.min() > 0.2


@pytest.mark.parametrize("take", [TAKE, ISOLATED], ids=["joint", "isolated"])
def test_a_take_after_a_film_is_what_stock_calls_make_of_it(tiny_wan: Path, film: Path, take: Take) -> None:
    card, take = read_card(str(tiny_wan)), _after(film, take)
    assert [call.context for call in take.timeline_for(card).calls] == [(-3, -2, -1), (-3, 0, 1), (-3, 2, 3)]
    renderer = Renderer(card)
    encoded = encode_film(renderer.family, take, Mesh())
    earlier = torch.cat([encoded.context[number] for number in (-3, -2, -1)], dim=2)
    rendered = renderer.render(take, None).latents
    assert_same(rendered, rollout_by_hand(card, take, earlier))
    assert [take.prompt_at(call.centre, card) for call in take.timeline_for(card).calls] == [take.prompts[at].text for at in (0, 1, 1)]
    assert [take.frames(one.frames, card) for one in take.timeline_for(card).rounds] == [range(8), range(8, 16), range(16, 24)]


def _render(mesh: Mesh, card: ModelCard, take: Take) -> tuple[WholeTake, Tensor]:
    items = list(Renderer(card, mesh=mesh).steps(take, tiny_recipe("fbcache")))
    assert isinstance(items[0], Encoded)
    return whole_take(items), items[0].end


def test_the_same_film_on_any_gang(gloo_pool: GlooPool, tiny_wan: Path, film: Path) -> None:
    card, take = read_card(str(tiny_wan)), _after(film)
    [(alone, end)] = gloo_pool.run(_render, 1, card, take)
    for degrees in (Degrees(ulysses_degree=2), Degrees(cfg_degree=2)):
        on_ranks = gloo_pool.run(_render, degrees, card, take)
        for rendered, its_end in on_ranks:
            assert_same_film(rendered, alone, f"with {degrees}")
            assert torch.equal(its_end, end)
            assert torch.equal(rendered.latents, on_ranks[0][0].latents)


@pytest.mark.parametrize("num_steps", [3, 11])
def test_a_take_after_a_film_goes_on_after_a_break(tiny_wan: Path, film: Path, tmp_path: Path, num_steps: int) -> None:
    """To the bit, and without the film."""
    copy = Path(shutil.copy(film, tmp_path / "film.mp4"))
    renderer, take, before, steps = Renderer(read_card(str(tiny_wan))), _after(copy), list[Tensor](), 0
    whole = renderer.render(take, None).latents
    rendering = renderer.steps(take, None)
    while steps < num_steps:
        one = next(rendering)
        steps += isinstance(one, Step)
        if isinstance(one, Finished):
            before.append(one.latents)
    renderer.save(tmp_path / "snapshot")
    rendering.close()
    copy.unlink()
    rest = whole_take(renderer.steps(take, None, snapshot=tmp_path / "snapshot")).latents
    assert torch.equal(torch.cat([*before, rest], dim=2), whole)


def test_rounds_of_a_take_after_a_film_are_kept(tiny_wan: Path, film: Path, tmp_path: Path) -> None:
    card = read_card(str(tiny_wan))
    renderer, take = Renderer(card), _after(film)
    changed = replace(take, reseeds=(SeedAt(16, 7),))
    whole = renderer.render(changed, None).latents
    for one in (take, changed):
        kept = KeptRounds(tmp_path, round_keys(card, "", one, None, ModelOptions()))
        before, items = kept.count(), list(renderer.steps(one, None, kept=kept))
    assert before == 2
    assert sum(isinstance(one, Step) for one in items) == take.num_inference_steps
    assert torch.equal(whole_take(items).latents, whole)


def _job(model: Path, output: Path, film: Path, **changes: Any) -> dict[str, Any]:
    take = {"name": "one", "prompt": "a red circle", "num_frames": 24, "continue_from": str(film), **changes.pop("take", {})}
    timeline = {"name": "rollout", "window": 17, "overlap": 8, "anchors": 1}
    return {"model": str(model), "output": str(output), "num_inference_steps": 3, "timeline": timeline, "takes": [take], **changes}


def test_a_job_goes_on_from_a_film(ray_cluster: str, tiny_wan: Path, film: Path, tmp_path: Path) -> None:
    """What is delivered is the film's continuation: as one decoding of the film's end and the new latents has it. It can be watched meanwhile."""
    growing, watched = tmp_path / "out" / "one" / GROWING, []

    def watch(event: Event) -> None:
        if isinstance(event, Stepped) and growing.exists():
            watched.append((event.step, read_film(growing)))

    job = _job(tiny_wan, tmp_path / "out", film, save_latents=True, parallel={"ulysses_degree": 2, "threads": 1})
    result = render(job, on_event=watch)["one"]
    assert [(step, len(frames)) for step, frames in watched[-2:]] == [(8, 15), (9, 15)], "two rounds of three"
    assert not growing.exists()
    assert result.film is not None
    assert result.manifest is not None
    assert result.manifest.config["take"]["continue_from"] == {"path": str(film), "sha256": find_film("one", str(film)).sha256}
    assert probe(result.film).num_frames == 24
    latents = load_file(result.folder / "latents.safetensors")["latents"]
    family = Renderer(read_card(str(tiny_wan))).family
    end = encode_film(family, _after(film), Mesh()).end
    decoded = torch.cat(list(family.decode(torch.cat((end, latents), dim=2))))[-24:]
    delivered, errors = read_film(result.film).astype(float), []
    for other in (decoded, torch.cat(list(family.decode(latents)))):
        frames = read_film(write_film(tmp_path / "other.mp4", other.mul(255).round().byte().numpy(), fps=8))
        errors.append(np.abs(delivered[: len(frames)] - frames).mean())
    print(f"delivered frames are {errors[0]:.3f} grey levels from the film's continuation, {errors[1]:.3f} from what the latents alone decode to")
    assert np.abs(watched[-1][1].astype(float) - delivered[:15]).mean() < 5, "the same pictures"
    assert errors[0] < 0.5
    assert errors[1] > 10


def test_the_key_has_what_the_film_holds(tiny_wan: Path, film: Path, tmp_path: Path) -> None:
    card = read_card(str(tiny_wan))
    same, other = (
        Path(shutil.copy(film, tmp_path / "copy.mp4")),
        write_film(tmp_path / "other.mp4", smooth_clip(NUM_FRAMES, 32, 32)[::-1].copy(), fps=8),
    )
    one_chunk = replace(_after(film), num_frames=8, prompts=TAKE.prompts[:1])
    keys = [film_key(card, "", take, None, ModelOptions()) for take in (_after(film), _after(same), _after(other), one_chunk)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    changed = replace(one_chunk, timeline=replace(one_chunk.timeline, overlap=1))
    assert film_key(card, "", changed, None, ModelOptions()) != keys[3], "one call shows the take, and what it shows of the film differs"


def test_what_a_round_shows_of_the_film_is_in_its_key(tiny_wan: Path, film: Path) -> None:
    """Context is numbered from its end: 3 frames before the take, or 2 and an anchor, have the same numbers."""
    card, keys = read_card(str(tiny_wan)), []
    for overlap, anchors in ((3, 0), (2, 1)):
        take = _after(film)
        take = replace(take, timeline=replace(take.timeline, overlap=overlap, anchors=anchors))
        keys.append(round_keys(card, "", take, None, ModelOptions()))
    assert keys[0][0] != keys[1][0]


@pytest.mark.parametrize(
    ("others", "given", "match"),
    [
        ([], "OUT/one/film.mp4", "the film of this very take, which would be moved away; give the take another name"),
        (
            [{"name": "two", "prompt": "a square"}],
            "OUT/two/film.mp4",
            "the film of take 'two', which this job is to render; render that one by a job of",
        ),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_films_of_the_job_itself_are_refused(
    tiny_wan: Path, film: Path, tmp_path: Path, others: list[dict[str, Any]], given: str, match: str, exists: bool
) -> None:
    """Before anything is moved, there already or not."""
    path = Path(given.replace("OUT", str(tmp_path)))
    if exists:
        path.parent.mkdir()
        shutil.copy(film, path)
    job = _job(tiny_wan, tmp_path, path)
    job["takes"] += [{**other, "timeline": "full"} for other in others]
    with pytest.raises(ValueError, match=match):
        plan_job(load_job(job))


def test_a_film_that_changed_meanwhile_is_refused(tiny_wan: Path, film: Path, tmp_path: Path) -> None:
    take = _after(Path(shutil.copy(film, tmp_path / "film.mp4")))
    write_film(tmp_path / "film.mp4", smooth_clip(NUM_FRAMES + 1, 32, 32), fps=8)
    with pytest.raises(ValueError, match=r"film.mp4' has changed since the job was planned; run it again"):
        Renderer(read_card(str(tiny_wan))).render(take, None)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"timeline": "windows"}, "and only a rollout goes on from a film, this take's timeline is windows; set timeline=rollout"),
        ({"height": 48}, "has 32x32 pixels, and the take 32x48; set width=32 height=32"),
        ({"fps": "24"}, "has 8 frames a second, and the take 24; set fps=8, or convert the film"),
        ({"take": {"num_frames": 25}}, "num_frames is 25; it must be a multiple of 4 after a film, 24 for example"),
        ({"take": {"continue_from": "nowhere.mp4"}}, "continue_from is 'nowhere.mp4', and there is no such file; give the path of a film"),
        ({"take": {"continue_from": "ODD"}}, "has 34x50 pixels, and the take 32x32; scale the film, to multiples of 16"),
        ({"take": {"continue_from": "/"}}, "continue_from is '/', and that is a folder; give the path of a film"),
        ({"take": {"continue_from": __file__}}, "cannot be read as a film"),
        (
            {"take": {"continue_from": "SHORT"}},
            r"has 20 frame\(s\), and with this timeline.overlap and timeline.anchors 21 are encoded; give a longer",
        ),
    ],
)
def test_refused(tiny_wan: Path, film: Path, tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    sizes = {"SHORT": (20, 32, 32), "ODD": (NUM_FRAMES, 34, 50)}
    if (size := sizes.get(changes.get("take", {}).get("continue_from"))) is not None:
        changes = {"take": {"continue_from": str(write_film(tmp_path / "other.mp4", smooth_clip(*size), fps=8))}}
    job = load_job(_job(tiny_wan, tmp_path, film, **changes))
    with pytest.raises(ValueError, match=match) as caught:
        resolve_takes(job, read_card(str(tiny_wan)), Fraction(job.fps or 8))
    assert str(caught.value).startswith("Take 'one': ")


def test_a_model_that_takes_no_clean_context_goes_on_from_no_film(tiny_wan_copy: Path, film: Path, tmp_path: Path) -> None:
    (tiny_wan_copy / "README.md").write_text("---\nlongtake: {trained_frames: 17, height: 32, width: 32, fps: 8}\n---\n")
    with pytest.raises(ValueError, match=r"not trained to go on from clean frames, .* set timeline=windows"):
        resolve_takes(load_job(_job(tiny_wan_copy, tmp_path, film)), read_card(str(tiny_wan_copy)), Fraction(8))
