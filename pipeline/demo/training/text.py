"""Training the demo model's text encoder alone, before or between training it together with the DiT.

Real models start from a pretrained text encoder. Ours learns here that a sentence speaks of things: linear classifiers must read off every
word's embedding which thing the word is about, and all that is said about that thing. A DiT that is trained with an untrained encoder treats
the sentence as a bag of words for hours: it draws two things of the right colours whose shapes are mixed.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional as F

from ....files import written_whole
from ..scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Scene, clauses, join_clauses, sample_scene
from .dit import DenoiserWithText, build_denoiser
from .trainer import Schedule, Trainer

_ASKED: dict[str, tuple[str, ...]] = {"shape": SHAPES, "colour": tuple(COLOURS), "motion": MOTIONS}
_PROMPTS_A_STEP = 128
_STAY = 0.3  # weight of the loss that keeps an encoder close to what its DiT was trained with; each question's loss has weight 1
_NOISE = 0.7  # of an embedding's root mean square: a faint answer would do for a linear classifier, but not for a DiT
NO_ANSWER = -100


class _Reader(nn.Module):
    """The encoder, and for each question a linear classifier of its words' embeddings."""

    def __init__(self, model: DenoiserWithText, device: torch.device) -> None:
        super().__init__()
        self.encoder = model.text_encoder
        sizes = {"order": 2, **{name: len(values) for name, values in _ASKED.items()}, "background": len(BACKGROUNDS)}
        self.questions = nn.ModuleDict({name: nn.Linear(self.encoder.config.d_model, size) for name, size in sizes.items()})
        self.to(device)


def train_text(folder: Path, schedule: Schedule, device: torch.device) -> None:
    """Train the encoder of `folder`/dit.pt, if there is one, and put it back there; or else a new one for `train_dit` to begin with.

    Raises ValueError where an earlier training of the encoder alone would overwrite what it has learnt with the DiT since.
    """
    known, earlier = folder / "dit.pt", folder / "text.pt"
    if known.exists() and earlier.exists():
        raise ValueError(f"'{earlier}' is older than the encoder in '{known}'; move it away to train again from there.")
    model = build_denoiser()
    if known.exists():
        weights = torch.load(known, weights_only=True)["module"]
        model.load_state_dict({name: weight for name, weight in weights.items() if "relative_attention_bias" not in name}, strict=False)
    reader = _Reader(model, device)
    before = copy.deepcopy(reader.encoder) if known.exists() else None
    tokenize = model.tokenizer

    def loss(rng: Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = [sample_scene(rng, two_things=0.7) for _ in range(_PROMPTS_A_STEP)]
        said = [clauses(scene, rng) for scene in scenes]
        tokens = tokenize([join_clauses(parts) for parts in said], padding=True, return_tensors="pt").to(device)
        words = reader.encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        answers = answers_of(scenes, said, tokens.input_ids.shape[1])
        noisy = words + _NOISE * words.detach().square().mean().sqrt() * torch.randn_like(words)
        wrong = {name: F.cross_entropy(ask(noisy).flatten(0, 1), answers[name].flatten().to(device)) for name, ask in reader.questions.items()}
        value = torch.stack(list(wrong.values())).sum()
        figures = {name: float(one.detach()) for name, one in wrong.items()}
        if before is not None:
            with torch.no_grad():
                old = before(tokens.input_ids, tokens.attention_mask).last_hidden_state
            mask = tokens.attention_mask[..., None]
            moved = ((words - old) * mask).square().sum() / (old * mask).square().sum()
            value, figures["moved"] = value + _STAY * moved, float(moved.detach())
        return value, figures

    encoder = Trainer("text", reader, schedule, folder).run(loss).encoder
    if known.exists():
        _put_back(encoder, known)


def answers_of(scenes: list[Scene], said: list[list[str]], length: int) -> dict[str, Tensor]:
    """For each question, [scenes, length]: the right answer at each word that is about it. A token is a word."""
    answers = {name: torch.full((len(scenes), length), NO_ANSWER) for name in ("order", *_ASKED, "background")}
    for row, (scene, parts) in enumerate(zip(scenes, said, strict=True)):
        start = 0
        for order, (thing, clause) in enumerate(zip(scene.things, parts, strict=False)):
            stop = start + len(clause.split())
            answers["order"][row, start:stop] = order
            for name, values in _ASKED.items():
                answers[name][row, start:stop] = values.index(getattr(thing, name))
            start = stop + (order + 1 < len(scene.things))  # "and"
        answers["background"][row, start : start + len(parts[-1].split())] = BACKGROUNDS.index(scene.background)
    return answers


def _put_back(encoder: nn.Module, checkpoint: Path) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    for name, weight in encoder.state_dict().items():
        saved["module"][f"text_encoder.{name}"] = saved["average"][f"module.text_encoder.{name}"] = weight.cpu()
    with written_whole(checkpoint) as temporary:
        torch.save(saved, temporary)
