"""The Wan family against stock diffusers, its streamed decoding, and previews."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.demo.scene import draw, sample_scene
from longtake.pipeline.film.preview import Preview
from longtake.pipeline.loop.render import Renderer
from PIL import Image
from transformers.utils import logging as transformers_logging

from same import assert_same, slope
from takes import stock_latents, stock_take

pytestmark = pytest.mark.numerical


def test_one_rank_equals_the_stock_pipeline(tiny_wan: Path) -> None:
    card, take = read_card(str(tiny_wan)), stock_take(negative_prompt="a blue square")
    ours = Renderer(card).render(take, None).latents
    theirs = stock_latents(WanPipeline.from_pretrained(tiny_wan), take, card.max_sequence_length)
    assert_same(ours, theirs)


def _settings() -> tuple[object, ...]:
    logs = (diffusers_logging, transformers_logging)
    return (are_progress_bars_disabled(), *(log.is_progress_bar_enabled() for log in logs), *(log.get_verbosity() for log in logs))


@pytest.mark.parametrize("model", ["tiny_wan", "tiny_hunyuan"])
def test_loading_prints_nothing_and_leaves_the_libraries_as_they_were(
    model: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = request.getfixturevalue(model)
    capsys.readouterr()
    before = _settings()
    for hub_is_quiet in (False, True):
        if hub_is_quiet:
            disable_progress_bars()
        Renderer(read_card(str(folder)))
        assert capsys.readouterr() == ("", "")
        assert _settings() == (hub_is_quiet, *before[1:])
    enable_progress_bars()
    DiffusionPipeline.from_pretrained(folder)
    assert "Loading weights" in capsys.readouterr().err, "a studio's own loading shows its bars"


def test_texts_are_encoded_once_and_the_last_32_are_kept(tiny_wan: Path) -> None:
    family = Renderer(read_card(str(tiny_wan))).family
    first, others = family.encode_prompt("in every take"), []
    for number in range(40):
        others.append(weakref.ref(family.encode_prompt(str(number))["encoder_hidden_states"]))
        assert family.encode_prompt("in every take") is first
    assert [other() is not None for other in others] == [False] * 9 + [True] * 31


def test_streamed_decoding_equals_decoding_the_whole(tiny_wan: Path) -> None:
    family = Renderer(read_card(str(tiny_wan))).family
    latents = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    streamed = torch.cat(list(family.decode(latents)))
    with torch.no_grad():
        whole = family.vae.decode(latents).sample[0].permute(1, 2, 3, 0).clamp(-1, 1).add(1).div(2)
    assert streamed.shape == (13, 32, 32, 3)
    assert_same(streamed, whole)


def test_stock_diffusers_loads_and_renders_the_demo_model() -> None:
    card = read_card("demo")
    stock = WanPipeline.from_pretrained(card.path)
    stock.set_progress_bar_config(disable=True)
    prompt = "a red circle moves left over a grey background"
    assert "<unk>" not in stock.tokenizer.tokenize(prompt)
    frames = stock(
        prompt, height=card.height, width=card.width, num_frames=5, num_inference_steps=2, max_sequence_length=card.max_sequence_length
    ).frames
    assert frames.shape == (1, 5, 96, 96, 3)
    assert sum(path.stat().st_size for path in card.path.rglob("*.safetensors")) < 30e6


_HELD = """
import ctypes, sys
from pathlib import Path
import torch
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.loop.render import Renderer
family = Renderer(read_card(sys.argv[1])).family
def held(num_latents):
    sizes = []
    for _ in family.decode(torch.zeros(1, 4, num_latents, 8, 8)):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
        sizes.append(int(line.split()[1]) * 1024)
    return max(sizes)
held(8)
print(*(held(int(length)) for length in sys.argv[2:]))
"""


def test_decoding_memory_does_not_grow_with_the_number_of_frames(tiny_wan: Path) -> None:
    """A latent frame's pixels would take 197 kB if they were kept. glibc must give freed memory back at once."""
    lengths, environment = (8, 16, 24, 32), {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", _HELD, str(tiny_wan), *map(str, lengths)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    grown = slope(lengths, [int(size) for size in result.stdout.split()])
    assert grown < 197e3 / 4, f"a latent frame costs {grown / 1e3:.0f} kB"


def test_preview_shows_the_colours_of_a_clip() -> None:
    """On the demo model: a drawn clip, encoded, must look in the preview like the clip scaled down."""
    family = Renderer(read_card("demo")).family
    frames = torch.from_numpy(draw(sample_scene(np.random.default_rng(3)), 17)).float() / 255
    latents = family.encode(frames)
    preview = Preview(family)
    shown = torch.from_numpy(preview.frames(latents)[-1]).float() / 255
    expected = torch.nn.functional.avg_pool2d(frames[-1].movedim(-1, 0), 8).movedim(0, -1)
    assert (shown - expected).abs().mean() < 0.07
    strip = Image.open(io.BytesIO(preview.jpeg(latents)))
    assert strip.size == (5 * 96, 96)
