"""A take to render, resolved: no defaults left open, sizes checked against the model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..cache import Schedule
from ..cache.schedule.schedule import SCHEDULERS
from .checkpoint.card import BANDED, ModelCard
from .noise import NOISES
from .timelines.banded import banded
from .timelines.rollout import rollout
from .timelines.timeline import Timeline, centre
from .timelines.windows import SHIFTS, windows

_PARTS = {"rollout": "chunk", "banded": "segment"}  # of a timeline, what has a prompt each; windows elsewhere
_CONTEXTS = ("joint", "isolated")
_ON_PROMPT = ("recache", "flush")
_LARGEST_SIDE = 16384  # pixels; what H.264 and its players can hold
_MOST_FRAMES, _MOST_STEPS = 1_000_000, 10_000  # far beyond use: larger numbers are typing errors


class PromptError(ValueError):
    """A take's prompts lie where they cannot; the message names their frames."""


@dataclass(frozen=True)
class PromptAt:
    """A prompt and the first frame that it holds for."""

    frame: int
    text: str


@dataclass(frozen=True)
class SeedAt:
    """A seed, and the frame from whose chunk on it holds."""

    frame: int
    seed: int


@dataclass(frozen=True)
class EarlierFilm:
    """A film that a take goes on from. sha256: of its file, 64 hex digits."""

    path: str
    sha256: str


@dataclass(frozen=True)
class TimelineSettings:
    """name: `full`, `windows`, `rollout` or `banded`. window: the most that a call shows, or that a segment of a banded take attends to; overlap:
    what a window shares with the next one, or a chunk's context with the one before; anchors: the take's first frames that a rollout's calls show
    as well, or that all segments attend to. All in latent frames, 0 where unused.
    context: of a rollout, `joint`, context and new frames attend to each other at every step, or `isolated`, context to context alone. on_prompt:
    what a rollout does with the context of a chunk that has another prompt than the one before: `recache` computes it with the new text, `flush`
    cuts it to one anchor and two frames as well. shift: of SHIFTS, how windows begin from step to step.
    """

    name: str
    window: int
    overlap: int
    anchors: int = 0
    context: str = "joint"
    on_prompt: str = "recache"
    shift: str = "none"

    @property
    def shortest(self) -> int:
        """Latent frames of the shortest take that has a call of each kind: three windows, or a chunk and the next one."""
        hop = self.window - self.overlap - self.anchors
        return self.window + (2 * hop if self.name == "windows" else hop)


@dataclass(frozen=True)
class Take:
    """All that decides a film beside the model and the recipe. Sizes in pixels, lengths in frames.

    scheduler: the sampler, by its name in checkpoint.support.SAMPLERS; None for the checkpoint's own. schedule: the sigmas that it steps at;
    None for those that it makes itself. continue_from: the film whose end is the context of a rollout's first chunk; the take's frames are those
    after it. reseeds: seeds of a rollout's later chunks.
    """

    name: str
    prompts: tuple[PromptAt, ...]
    negative_prompt: str
    seed: int
    num_frames: int
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float | None
    timeline: TimelineSettings
    noise: str
    scheduler: str | None = None
    schedule: Schedule | None = None
    continue_from: EarlierFilm | None = None
    reseeds: tuple[SeedAt, ...] = ()

    @classmethod
    def clip(cls, card: ModelCard, name: str, prompt: str, *, seed: int, num_inference_steps: int, guidance_scale: float) -> Take:
        """One clip of the model's own length and size, rendered whole."""
        return cls(
            name=name,
            prompts=(PromptAt(0, prompt),),
            negative_prompt="",
            seed=seed,
            num_frames=card.trained_frames,
            height=card.height,
            width=card.width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            flow_shift=None,
            timeline=TimelineSettings("full", 0, 0),
            noise="frame",
        )

    def proxy(self, card: ModelCard) -> Take:
        """The start of the take as one clip with its first prompt, no longer than a window, or than the model's own clips without windows."""
        window = card.latent_frames(card.trained_frames) if self.timeline.name == "full" else self.timeline.window
        num_frames = (min(self.num_latent_frames(card), window) - 1) * card.temporal_stride + 1
        return replace(self, prompts=self.prompts[:1], num_frames=num_frames, timeline=TimelineSettings("full", 0, 0), continue_from=None, reseeds=())

    def check(self, card: ModelCard) -> None:
        """Raise ValueError, with the value and the mend, for what this model cannot render."""
        where = f"Take '{self.name}'"
        self._check_size(where, card)
        self._check_sampling(where, card)
        self._check_schedule(where, card)
        self._check_timeline(where, card)
        self._check_reseeds(where, card)
        self._check_prompts(where)
        self._check_heard(where, card)

    def _check_heard(self, where: str, card: ModelCard) -> None:
        heard = {self._prompt_holding(centre(span), card) for span in self.timeline_for(card).spans}
        part = _PARTS.get(self.timeline.name, "window")
        mend = "set timeline=windows with " if part == "window" else "set "
        for prompt in self.prompts:
            if prompt not in heard:
                raise PromptError(
                    f"{where}: the prompt from frame {prompt.frame} ('{prompt.text}') is used by no {part}, as each uses the prompt at its "
                    f"middle; {mend}a shorter timeline.window, or let the prompt hold for longer."
                )

    def _check_size(self, where: str, card: ModelCard) -> None:
        multiple = card.size_multiple
        for name, value in (("height", self.height), ("width", self.width)):
            if value < multiple or value % multiple:
                nearest = max(multiple, round(value / multiple) * multiple)
                raise ValueError(f"{where}: {name} is {value}; it must be a multiple of {multiple} for this model, {nearest} for example.")
            if value > _LARGEST_SIDE:
                raise ValueError(f"{where}: {name} is {value}; films are at most {_LARGEST_SIDE} pixels wide and high.")
        stride = card.temporal_stride
        if self.num_frames > _MOST_FRAMES:
            raise ValueError(f"{where}: num_frames is {self.num_frames}; it must be at most {_MOST_FRAMES}.")
        first, rule = (1, f"1 more than a multiple of {stride}") if self.continue_from is None else (stride, f"a multiple of {stride} after a film")
        if self.num_frames < first or (self.num_frames - first) % stride:
            nearest = max(0, round((self.num_frames - first) / stride)) * stride + first
            raise ValueError(f"{where}: num_frames is {self.num_frames}; it must be {rule}, {nearest} for example.")

    def _check_sampling(self, where: str, card: ModelCard) -> None:
        if not 1 <= self.num_inference_steps <= _MOST_STEPS:
            raise ValueError(f"{where}: num_inference_steps is {self.num_inference_steps}; it must be from 1 to {_MOST_STEPS}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"{where}: seed is {self.seed}; it must be from 0 to {2**63 - 1}.")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise ValueError(f"{where}: guidance_scale is {self.guidance_scale:g}; it must be finite and at least 0, 5 for example.")
        if self.flow_shift is not None and not (math.isfinite(self.flow_shift) and self.flow_shift > 0):
            raise ValueError(f"{where}: flow_shift is {self.flow_shift:g}; it must be finite and above 0, 3 for example.")
        if self.scheduler is not None and self.scheduler not in card.samplers:
            raise ValueError(
                f"{where}: scheduler is '{self.scheduler}'; models of this kind are rendered with {', '.join(card.samplers)}; choose one of them, or "
                f"leave it out for the model's own ({card.scheduler})."
            )
        if self.negative_prompt and not self.is_guided(card):
            why = "this model has its guidance embedded" if card.embeds_guidance else "guidance_scale is 1"
            raise ValueError(
                f"{where}: negative_prompt is '{self.negative_prompt}', but {why}, so that it has no effect; drop it, or set "
                f"takes.*.negative_prompt= (empty){'' if card.embeds_guidance else ', or raise guidance_scale'}."
            )
        if self.noise not in NOISES:
            raise ValueError(f"{where}: noise is '{self.noise}'; it must be one of {', '.join(NOISES)}.")

    def _check_schedule(self, where: str, card: ModelCard) -> None:
        if self.schedule is None:
            return
        sampler, steps = self.scheduled_sampler(card), self.schedule.num_steps
        if self.num_inference_steps != steps:
            raise ValueError(f"{where}: num_inference_steps is {self.num_inference_steps}, and its schedule has {steps} steps; make them equal.")
        if self.flow_shift is not None and self.schedule.flow_shift is None:
            raise ValueError(f"{where}: flow_shift is {self.flow_shift:g}, which moves no sigmas of a schedule; leave out one of the two.")
        shift = card.flow_shift if self.flow_shift is None else self.flow_shift
        self.schedule.check(where, scheduler=sampler, flow_shift=shift, guidance_scale=self.guidance_scale)

    def _check_timeline(self, where: str, card: ModelCard) -> None:
        if self.timeline.shift not in SHIFTS:
            raise ValueError(f"{where}: timeline.shift is '{self.timeline.shift}'; it must be {' or '.join(SHIFTS)}.")
        if self.timeline.name == "banded":
            self._check_bands(where, card)
        if self.timeline.name != "rollout":
            if self.continue_from is not None:
                raise ValueError(
                    f"{where}: continue_from is '{self.continue_from.path}', and only a rollout goes on from a film, this take's timeline is "
                    f"{self.timeline.name}; set timeline=rollout."
                )
            return
        if self.timeline.on_prompt not in _ON_PROMPT:
            raise ValueError(f"{where}: timeline.on_prompt is '{self.timeline.on_prompt}'; it must be {' or '.join(_ON_PROMPT)}.")
        how = self.timeline.context
        if how not in card.clean_context:
            if how in _CONTEXTS and card.clean_context:
                raise ValueError(
                    f"{where}: timeline.context is {how}, and this model was trained for {', '.join(card.clean_context)}, as its card says; "
                    f"set timeline.context={card.clean_context[0]}."
                )
            if card.clean_context:
                raise ValueError(f"{where}: timeline.context is '{how}'; it must be {' or '.join(card.clean_context)}.")
            raise ValueError(
                f"{where}: timeline is rollout, and this model was not trained to go on from clean frames, or its model card does not say so "
                f"(`longtake: {{clean_context: [joint]}}` in its README.md); set timeline=windows."
            )
        if self.noise == "diffusers" and len(self.timeline_for(card).rounds) > 1:
            raise ValueError(f"{where}: noise is diffusers, which stock pipelines draw for a whole take at once; set noise=frame for a rollout.")

    def _check_bands(self, where: str, card: ModelCard) -> None:
        if card.family not in BANDED or card.patch_size[0] != 1:
            raise ValueError(
                f"{where}: timeline is banded, which this model cannot be rendered with: it carries text and frames jointly through its blocks, or "
                f"more than one latent frame in a token. Set timeline=windows."
            )
        if self.timeline.window > (most := card.latent_frames(card.trained_frames)):
            shown = (self.timeline.window - 1) * card.temporal_stride + 1
            raise ValueError(
                f"{where}: timeline.window is {shown} frames ({self.timeline.window} latent ones), wider than the clips of {card.trained_frames} "
                f"({most}) that the model was trained on; set timeline.window={card.trained_frames}, or less."
            )
        if self.noise == "diffusers":
            raise ValueError(f"{where}: noise is diffusers, which stock pipelines draw for a whole take at once; set noise=frame for a banded one.")

    def _check_reseeds(self, where: str, card: ModelCard) -> None:
        if not self.reseeds:
            return
        if self.timeline.name != "rollout":
            raise ValueError(
                f"{where}: reseed is given, and with timeline {self.timeline.name} all frames depend on each other, so that none can be kept; set "
                f"timeline=rollout, or set seed."
            )
        chunks = [self.frames(one.frames, card) for one in self.timeline_for(card).rounds]
        begins = []
        for one in self.reseeds:
            if not 0 <= one.seed < 2**63:
                raise ValueError(f"{where}: reseed has seed {one.seed}; it must be from 0 to {2**63 - 1}.")
            if one.frame >= self.num_frames:
                raise ValueError(f"{where}: reseed is at frame {one.frame}, but the take has {self.num_frames} frames; make it longer.")
            if one.frame < chunks[0].stop:
                raise ValueError(
                    f"{where}: reseed is at frame {one.frame}, in the first chunk, which ends at frame {chunks[0].stop - 1}; set seed instead."
                )
            begins.append(next(chunk.start for chunk in chunks if one.frame in chunk))
        if begins != sorted(set(begins)):
            raise ValueError(f"{where}: reseeds fall into the chunks that begin at frames {begins}; they must ascend, one a chunk at most.")

    def seed_of(self, latent_frames: range, card: ModelCard) -> int:
        """The seed of a round: that of the last reseed that begins in it, or before it."""
        return [self.seed, *(one.seed for one in self.reseeds if one.frame < self.frames(latent_frames, card).stop)][-1]

    def scheduled_sampler(self, card: ModelCard) -> str:
        """The class of the take's sampler in diffusers. Raises ValueError, with the mend, for one that takes no schedule."""
        sampler = card.sampled_by(self.scheduler).scheduler
        if sampler not in SCHEDULERS:
            raise ValueError(
                f"Take '{self.name}': the model's own scheduler, {sampler}, takes no schedule; set scheduler to one of {', '.join(card.samplers)}."
            )
        return sampler

    def is_guided(self, card: ModelCard) -> bool:
        """Whether each step needs a second model call without the prompt; models with guidance embedded take the scale as an input."""
        return self.guidance_scale != 1 and not card.embeds_guidance

    def _check_prompts(self, where: str) -> None:
        if not self.prompts or not all(prompt.text.strip() for prompt in self.prompts):
            raise ValueError(f"{where} lacks a prompt; set `prompt: ...` or `prompts: [{{frame: 0, text: ...}}]`.")
        frames = [prompt.frame for prompt in self.prompts]
        if frames[0] != 0 or frames != sorted(set(frames)):
            raise PromptError(f"{where}: prompts start at frames {frames}; they must start at 0 and ascend.")
        if frames[-1] >= self.num_frames:
            raise PromptError(f"{where}: a prompt starts at frame {frames[-1]}, but the take has {self.num_frames} frames; make it longer.")

    def timeline_for(self, card: ModelCard) -> Timeline:
        """Raises ValueError for an unknown timeline or windows that do not fit."""
        length, settings = self.num_latent_frames(card), self.timeline
        if settings.name == "full":
            return Timeline.full(length)
        if settings.name == "windows":
            num_steps = 1 if settings.shift == "none" else self._num_calls(card)
            return windows(length, settings.window, settings.overlap, settings.shift, num_steps)
        if settings.name == "rollout":
            flushes = settings.on_prompt == "flush"

            def is_cut(before: range, chunk: range) -> bool:
                return flushes and self._prompt_holding(centre(before), card).text != self._prompt_holding(centre(chunk), card).text

            return rollout(length, settings.window, settings.overlap, settings.anchors, is_cut, goes_on=self.continue_from is not None)
        if settings.name == "banded":
            return banded(length, settings.window, settings.anchors)
        raise ValueError(f"Take '{self.name}': timeline is '{settings.name}'; it must be full, windows, rollout or banded.")

    def num_latent_frames(self, card: ModelCard) -> int:
        return card.latent_frames(self.num_frames) if self.continue_from is None else self.num_frames // card.temporal_stride

    def frames(self, latent_frames: range, card: ModelCard) -> range:
        """The frames that some latent frames in a row stand for: after an earlier film, the take's first is as the others."""
        if self.continue_from is None:
            return card.frames(latent_frames)
        return range(latent_frames.start * card.temporal_stride, latent_frames.stop * card.temporal_stride)

    def fewest_shown(self, card: ModelCard) -> int:
        """The latent frames of the model call that shows fewest: an isolated context is shown by itself, and the frames after it by themselves; of a
        banded take a rank may show one segment.
        """
        if self.timeline.name == "banded":
            return min(map(len, self.timeline_for(card).spans))
        calls = list(self.timeline_for(card).calls)
        if self.timeline.name != "rollout" or self.timeline.context == "joint":
            return min(call.num_shown for call in calls)
        return min(count for call in calls for count in (len(call.frames), len(call.context)) if count)

    def num_steps(self, card: ModelCard) -> int:
        """Denoising steps of all rounds together: a second-order sampler has two in each of its own."""
        return len(self.timeline_for(card).rounds) * self._num_calls(card)

    def _num_calls(self, card: ModelCard) -> int:
        """Of a round, as the sampler counts them."""
        return card.sampled_by(self.scheduler).num_calls(self.num_inference_steps)

    def prompt_at(self, latent_frame: float, card: ModelCard) -> str:
        """The prompt that holds at a latent frame; each model call is given the one at the middle of the frames that it denoises, each segment of a
        banded take that at its own.
        """
        return self._prompt_holding(latent_frame, card).text

    def _prompt_holding(self, latent_frame: float, card: ModelCard) -> PromptAt:
        last_of_first = 0 if self.continue_from is None else card.temporal_stride - 1
        frame = latent_frame * card.temporal_stride + last_of_first
        return [prompt for prompt in self.prompts if prompt.frame <= frame][-1]

    def first_span_with(self, prompt: PromptAt, card: ModelCard) -> range:
        """The first latent frames that are given a prompt: one of this take's, which `check` has found in use."""
        given = (span for span in self.timeline_for(card).spans if self._prompt_holding(centre(span), card) == prompt)
        return min(given, key=lambda span: span.start)
