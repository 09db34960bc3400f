"""How to stand in for what is not computed. One file a predictor; to add one, write its file and its line here."""

from typing import Any

from .adams_bashforth import AdamsBashforth, AdamsBashforthConfig
from .bdf_heun import BdfHeun, BdfHeunConfig
from .chebyshev import Chebyshev, ChebyshevConfig
from .hermite import Hermite, HermiteConfig
from .predictor import Predictor
from .reuse import Reuse, ReuseConfig
from .taylor import Taylor, TaylorConfig

PREDICTORS: dict[str, tuple[type[Any], type[Predictor]]] = {
    "reuse": (ReuseConfig, Reuse),
    "taylor": (TaylorConfig, Taylor),
    "hermite": (HermiteConfig, Hermite),
    "adams_bashforth": (AdamsBashforthConfig, AdamsBashforth),
    "bdf_heun": (BdfHeunConfig, BdfHeun),
    "chebyshev": (ChebyshevConfig, Chebyshev),
}

__all__ = ["PREDICTORS", "Predictor"]
