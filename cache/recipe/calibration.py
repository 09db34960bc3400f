"""What the numbers of a calibrated recipe were measured on, and whether a take is of that kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """How a take is sampled. scheduler: the sampler's class in diffusers. flow_shift: as its config has it. guidance_scale: of each expert of the
    model that has one of its own, or of all at once.
    """

    scheduler: str
    flow_shift: float
    guidance_scale: tuple[float, ...]


@dataclass(frozen=True)
class Calibration:
    """model: hash of the model that was measured, as pipeline.checkpoint.model_hash makes it; empty where it is not known.
    num_inference_steps: of the takes that the numbers were measured on; 0 where they hold for any number of steps, and so for any sampler.
    scheduler, flow_shift: of these takes' sampler, its class in diffusers and its shift; empty and None for the model's own. guidance_scale: of
    these takes; None where the numbers hold for any.
    """

    model: str = ""
    num_inference_steps: int = 0
    scheduler: str = ""
    flow_shift: float | None = None
    guidance_scale: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As `Calibration` takes it. What older files do not say is left out where it is not known, as it is part of their films' keys."""
        return {name: value for name, value in asdict(self).items() if name not in ("scheduler", "guidance_scale") or value not in ("", None)}

    def check_model(self, model: str, recipe: str) -> None:
        """Raise ValueError, with the mend, for another model than the one that was measured, where its hash is known."""
        if self.model not in ("", model):
            raise ValueError(f"Recipe '{recipe}' was calibrated for another model; run `longtake calibrate` on this one.")

    def check_steps(self, num_inference_steps: int, recipe: str) -> None:
        """Raise ValueError, with the mend, for takes of another number of steps."""
        if self.num_inference_steps not in (0, num_inference_steps):
            raise ValueError(
                f"Recipe '{recipe}' was calibrated for {self.num_inference_steps} steps, the take has {num_inference_steps}; make them equal, "
                f"or run `longtake calibrate` with --steps {num_inference_steps}."
            )

    def check_sampling(self, take: Sampling, recipe: str) -> None:
        """Raise ValueError, with the mend, for a take of another sampler, flow shift or guidance."""
        if self.num_inference_steps:
            if self.scheduler not in ("", take.scheduler):
                raise ValueError(
                    f"Recipe '{recipe}' was calibrated with {self.scheduler}, the take has {take.scheduler}; make them equal, or run "
                    f"`longtake calibrate` with the take's."
                )
            if self.flow_shift not in (None, take.flow_shift):
                raise ValueError(
                    f"Recipe '{recipe}' was calibrated with flow_shift {self.flow_shift:g}, the take has {take.flow_shift:g}; make them equal, or "
                    f"run `longtake calibrate` with --flow-shift {take.flow_shift:g}."
                )
        for scale in take.guidance_scale:
            if self.guidance_scale not in (None, scale):
                raise ValueError(
                    f"Recipe '{recipe}' was calibrated at guidance_scale {self.guidance_scale:g}, the take has {scale:g}; make them equal, or run "
                    f"`longtake calibrate` with --guidance-scale {scale:g}."
                )
