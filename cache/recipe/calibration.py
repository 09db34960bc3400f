"""What the numbers of a calibrated recipe were measured on, and whether a take is of that kind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Calibration:
    """model: hash of the model that was measured, as pipeline.checkpoint.model_hash makes it. num_inference_steps: of the takes that the
    numbers were measured on; 0 where they hold for any number of steps. flow_shift: of these takes, None for the model's own.
    """

    model: str = ""
    num_inference_steps: int = 0
    flow_shift: float | None = None

    def check(self, model: str, num_inference_steps: int, flow_shift: float | None, recipe: str) -> None:
        """Raise ValueError, with the mend, for another model, number of steps or flow_shift."""
        if model != self.model:
            raise ValueError(f"Recipe '{recipe}' was calibrated for another model; run `longtake calibrate` on this one.")
        self.check_steps(num_inference_steps, recipe)
        if self.num_inference_steps and self.flow_shift != flow_shift:
            stated = ("the model's own flow_shift" if shift is None else f"flow_shift {shift:g}" for shift in (self.flow_shift, flow_shift))
            raise ValueError(
                f"Recipe '{recipe}' was calibrated with {next(stated)}, the take has {next(stated)}; make them equal, or run `longtake calibrate` "
                f"with the take's."
            )

    def check_steps(self, num_inference_steps: int, recipe: str) -> None:
        """Raise ValueError, with the mend, for takes of another number of steps."""
        if self.num_inference_steps not in (0, num_inference_steps):
            raise ValueError(
                f"Recipe '{recipe}' was calibrated for {self.num_inference_steps} steps, the take has {num_inference_steps}; make them equal, "
                f"or run `longtake calibrate` with --steps {num_inference_steps}."
            )
