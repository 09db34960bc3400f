"""How to stand in for what is not computed. One file a predictor; to add one, write its file and its line here.

These files get torch from longtake.later, as recipes are read and checked without it.
"""

from typing import Any

from .adams_bashforth import AdamsBashforth, AdamsBashforthConfig
from .align import Align, AlignConfig
from .bdf_heun import BdfHeun, BdfHeunConfig
from .chebyshev import Chebyshev, ChebyshevConfig
from .dmd import Dmd, DmdConfig
from .hermite import Hermite, HermiteConfig
from .mean_velocity import MeanVelocity, MeanVelocityConfig
from .planned import Planned, PlannedConfig
from .predictor import Predictor, sampled_channels
from .racer import Racer, RacerConfig
from .reuse import Reuse, ReuseConfig
from .taylor import Taylor, TaylorConfig

PREDICTORS: dict[str, tuple[type[Any], type[Predictor]]] = {
    "adams_bashforth": (AdamsBashforthConfig, AdamsBashforth),
    "align": (AlignConfig, Align),
    "bdf_heun": (BdfHeunConfig, BdfHeun),
    "chebyshev": (ChebyshevConfig, Chebyshev),
    "dmd": (DmdConfig, Dmd),
    "hermite": (HermiteConfig, Hermite),
    "mean_velocity": (MeanVelocityConfig, MeanVelocity),
    "planned": (PlannedConfig, Planned),
    "racer": (RacerConfig, Racer),
    "reuse": (ReuseConfig, Reuse),
    "taylor": (TaylorConfig, Taylor),
}

__all__ = ["PREDICTORS", "Predictor", "sampled_channels"]
