"""What the objects of a class hold from step to step, as the class declares it. Saving, sharding and counting of bytes go by that."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache


@dataclass(frozen=True)
class Holds:
    """The names of attributes, by the kind of what is in them, in containers or alone; one that is None is empty for now.

    settings: what an object was made with or is told before its first call; no state. numbers: what JSON can hold, the same on all shards.
    probes: tensors of what the model showed to it: a shard's own tokens where the site's probe is tokens, else the same on all shards. sums: partial
    sums that are not reduced yet. features: features as a storage keeps them: a shard's own tokens where the site's features are tokens.
    """

    settings: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    sums: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    @property
    def state(self) -> tuple[str, ...]:
        """All but the settings."""
        return self.numbers + self.probes + self.sums + self.features


@lru_cache
def declared(kind: type) -> Holds:
    """What a class and those that it is derived from declare in their attributes `holds`, together."""
    declarations = [vars(base)["holds"] for base in reversed(kind.__mro__) if "holds" in vars(base)]
    return Holds(*(sum((getattr(one, field.name) for one in declarations), ()) for field in fields(Holds)))
