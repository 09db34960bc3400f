"""How to stand in for what is not computed. One file a predictor; to add one, write its file and its line here."""

from typing import Any

from .predictor import Predictor
from .reuse import Reuse, ReuseConfig

PREDICTORS: dict[str, tuple[type[Any], type[Predictor]]] = {
    "reuse": (ReuseConfig, Reuse),
}

__all__ = ["PREDICTORS", "Predictor"]
