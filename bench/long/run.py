"""What long takes cost, and whether they hold: `python -m longtake.bench long`. The demo model, one thread a process.

A run that was interrupted goes on where it was: what is measured lies in bench/results/journals/long.journal until the results are written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from operator import truediv
from statistics import fmean, median
from typing import Any

import torch

from ...parallel.groups.degrees import Degrees
from ...parallel.groups.mesh import Mesh
from ...pipeline.checkpoint.card import read_card
from ...pipeline.checkpoint.model_hash import model_hash
from ..journal import Journal
from ..pool import GlooPool
from ..results import RESULTS, Bar, commit, write_results
from .costs import banded_beside_windows, halo_bytes, kept_context, late_over_early, rounds_of_a_long_rollout, window_steps
from .films import fastest, films_of, plans_of
from .holds import from_row, shares
from .same_film import differences
from .takes import TIMELINES

_JOURNALS = RESULTS / "journals"
_RANKS, _HALO_FRAMES = 2, 24


def main() -> None:
    """Raises ValueError in a checkout with changes that are not committed, as results name a commit."""
    if commit().endswith("+"):
        raise ValueError("This checkout has changes that are not committed, and results name a commit; commit them.")
    torch.set_num_threads(1)
    _JOURNALS.mkdir(parents=True, exist_ok=True)
    journal = Journal(_JOURNALS / "long.journal", _subject())
    results = {name: _result_of(name, piece, journal) for name, piece in _PIECES.items()}
    write_results("long", _bars(results), results)
    journal.discard()


def _subject() -> dict[str, Any]:
    root, sources = RESULTS.parent.parent, hashlib.sha256()
    for folder in ("bench/long", "cache", "configs", "parallel", "pipeline"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".yaml"):
                sources.update(path.read_bytes())
    return {"model": model_hash(read_card("demo").path), "sources": sources.hexdigest()}


def _result_of(name: str, piece: Callable[[Journal], Any], journal: Journal) -> Any:
    if name not in journal:
        print(f"{name}: {commit()}", flush=True)
        journal.note(name, piece(journal))
    return journal[name]


def _rounds(journal: Journal) -> list[dict[str, list[float]]]:
    with GlooPool(_RANKS, timeout=900) as pool:
        return pool.run(rounds_of_a_long_rollout, _RANKS)


def _halo_bytes(journal: Journal) -> dict[str, float]:
    """Of the rank that sends most."""
    with GlooPool(_RANKS, timeout=900) as pool:
        lengths = {"short": _HALO_FRAMES, "long": 10 * _HALO_FRAMES}
        return {name: max(pool.run(halo_bytes, Degrees(window_degree=_RANKS), length)) for name, length in lengths.items()}


def _same_film(journal: Journal) -> dict[str, float]:
    largest: dict[str, float] = {}
    with GlooPool(3, timeout=300) as pool:
        for what, difference in differences(pool):
            largest[what] = max(difference, largest.get(what, 0.0))
    return largest


# What takes longest comes first.
_PIECES: dict[str, Callable[[Journal], Any]] = {
    **{f"plans of {name}": partial(plans_of, name) for name in TIMELINES},
    **{f"films of {name}": partial(films_of, name) for name in TIMELINES},
    "same film": _same_film,
    "rounds": _rounds,
    "windows": lambda journal: window_steps(Mesh()),
    "banded beside windows": lambda journal: banded_beside_windows(Mesh()),
    "halo bytes": _halo_bytes,
    "kept context of 3": lambda journal: kept_context(3),
    "kept context of 5": lambda journal: kept_context(5),
}


def _bars(results: dict[str, Any]) -> dict[str, Bar]:
    ranks = results["rounds"]
    few, many = results["kept context of 3"], results["kept context of 5"]
    windows, beside, halos = results["windows"], results["banded beside windows"], results["halo bytes"]
    films = {name: results[f"films of {name}"] for name in TIMELINES}
    held = {name: shares([from_row(take) for take in film["takes"]]) for name, film in films.items()}
    return {
        "round_seconds_late": _at_most(max(late_over_early(rank["seconds"]) for rank in ranks), "x", 1.05),
        "round_bytes_late": _at_most(max(late_over_early(rank["bytes"]) for rank in ranks), "x", 1.01),
        "window_step_10x": _at_most(median(windows["long"]) / median(windows["short"]), "x", 1.05),
        "banded_vs_windows": _at_least(median(map(truediv, beside["windows"], beside["banded"])), "x", 1.6),
        "halo_bytes_10x": _at_most(halos["long"] / halos["short"], "x", 1.01),
        "rollout_kv_speedup": _at_least(_kept_speedup(few), "x", 1.3),
        "rollout_kv_speedup_5": _at_least(_kept_speedup(many), "x", 1.6),
        "rollout_kv_diff": Bar(max(few["difference"], many["difference"]), "latent units", 1e-5, at_least=False),
        "shifted_hit_rate": _at_least(_hit_rate(results), "x", 0.95),
        **{f"plan_{name}": _at_least(_speedup(results[f"plans of {name}"]), "x", 3.0) for name in TIMELINES},
        "seam_ratio_off": _at_most(max(abs(film["seam_ratio"] - 1) for film in films.values() if film["seam_ratio"] is not None), "", 0.15),
        "identity_30s": _at_least(held["rollout"]["identity"], "share", 0.9),
        "motion_30s": _at_least(held["rollout"]["motion"], "share", 0.9),
        "background_shift": _at_most(median(take["background_shift"] for take in films["rollout"]["takes"]), "grey levels", 2),
        "same_film_max_diff": Bar(max(results["same film"].values()), "latent units", 1e-4, at_least=False),
    }


def _kept_speedup(measured: dict[str, Any]) -> float:
    return median(map(truediv, measured["seconds"]["anew"], measured["seconds"]["kept"]))


def _speedup(plans: list[dict[str, Any]]) -> float:
    """Of the fastest plan whose films are near enough; 1 where none is."""
    chosen = fastest(plans)
    return fmean(chosen["speedup"]) if chosen else 1.0


def _hit_rate(results: dict[str, Any]) -> float:
    """How much a plan reuses of windows that shift over what it does of others: by the fastest plan that is near enough on those that shift."""
    chosen = fastest(results["plans of shifted"])
    beside = {plan["recipe"]: fmean(plan["reused"]) for plan in results["plans of windows"]}
    return fmean(chosen["reused"]) / beside[chosen["recipe"]] if chosen else 0.0


def _at_least(value: float, unit: str, bar: float) -> Bar:
    return Bar(round(value, 3), unit, bar, at_least=True)


def _at_most(value: float, unit: str, bar: float) -> Bar:
    return Bar(round(value, 3), unit, bar, at_least=False)
