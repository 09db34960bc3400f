"""How recipes are measured on a model, by the recipe's name. One file a method: its numbers, worked out, and the takes that they come from."""

from ..method import Method
from . import ertacache, lemica, magcache, meancache, planned, ra_cfgcache, smoothcache, teacache

CALIBRATIONS: dict[str, Method] = {
    "ertacache": ertacache.METHOD,
    "lemica": lemica.METHOD,
    "magcache": magcache.METHOD,
    "meancache": meancache.METHOD,
    "planned": planned.METHOD,
    "ra_cfgcache": ra_cfgcache.METHOD,
    "smoothcache": smoothcache.METHOD,
    "teacache": teacache.METHOD,
}
