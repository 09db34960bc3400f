"""What is written about a take beside its film: read by people, by render farms and by the next run of the same job."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ...files import write_atomic
from ...pipeline.film.checks.figures import Checks, second_of

_NAME = "manifest.json"


def computed_share(decisions: dict[str, int]) -> float:
    """Share of model calls that were computed, 0..1; one that was computed in part counts as half. decisions: how many of each kind; none
    without a cache, which computes all.
    """
    calls = sum(decisions.values())
    return (decisions["compute"] + decisions.get("partial", 0) / 2) / calls if calls else 1.0


class Manifest(BaseModel):
    """How a take was rendered. delivery_key: of the film file, empty while it is being replaced and in manifests of old versions. seconds:
    by stage, `load` (of the model, once a job), `encode`, `denoise`, `decode`, `write`, and `take`, all of it but loading. threads: CPU
    threads a rank. decisions: how many of each kind. speedup: what the cache saved of `denoise`, measured in the take; None
    without a cache. state is `done` once the film is whole, `stopped` where the job says on_drift: stop and a limit of the checks was passed: the
    film ends there. checks: of the whole film; None in manifests of old versions.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    take: str
    state: Literal["done", "stopped"]
    film_key: str
    delivery_key: str = ""
    seed: int
    config: dict[str, Any]
    recipe: dict[str, Any] | None
    ranks: int
    threads: int
    device: str
    versions: dict[str, str]
    seconds: dict[str, float]
    decisions: dict[str, int]
    speedup: float | None = None
    checks: Checks | None = None
    cache_bytes: int
    peak_memory_bytes: int
    finished: str

    @property
    def computed(self) -> float:
        """Share of the take's model calls that were computed, 0..1."""
        return computed_share(self.decisions)

    @property
    def why_stopped(self) -> str:
        """Empty unless the take was stopped."""
        if self.state != "stopped" or self.checks is None:
            return ""
        end = second_of(self.checks.num_frames, Fraction(self.config["fps"]))
        return f"stopped after {end:.1f} s, on_drift=stop: {self.checks.marks[0]}; its film up to there is kept"

    def write(self, folder: Path) -> None:
        # Lists of numbers and colours, a line each instead of a line an entry; what JSON writes into texts has no line ends.
        text = re.sub(r"\[\n\s+([^][{}\n]+(?:\n\s+[^][{}\n]+)*)\n\s+\]", _in_one_line, self.model_dump_json(indent=2))
        write_atomic(folder / _NAME, text)


def _in_one_line(found: re.Match[str]) -> str:
    entries = " ".join(line.strip() for line in found[1].splitlines())
    return f"[{entries}]"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished take, or None where the folder holds none. Raises ValueError for one that cannot be read."""
    path = folder / _NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise ValueError(f"'{path}' is no manifest that this version can read ({error.errors()[0]['msg']}); move its folder away.") from None
    except OSError as error:
        raise ValueError(f"'{path}' cannot be read ({error.strerror}); mend its permissions, or choose another `output`.") from None
