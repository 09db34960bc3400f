"""How each kind of model is loaded and called. One file a family; a new one needs its file, its line here and those in checkpoint/."""

from .family import Family
from .hunyuan_video import HunyuanVideo
from .wan import Wan

FAMILIES: dict[str, type[Family]] = {"wan": Wan, "hunyuan_video": HunyuanVideo}

__all__ = ["FAMILIES", "Family", "HunyuanVideo", "Wan"]
