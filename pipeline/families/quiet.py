"""Loading without the libraries' own progress bars and tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Inside, diffusers and transformers draw no bars, and transformers prints no tables of weights that a model lacks (`read_part` refuses
    those). What diffusers warns of stays: settings of a checkpoint that it does not know, for one. Afterwards all settings of theirs are as
    they were.
    """
    with ExitStack() as put_back:
        if are_progress_bars_disabled():
            put_back.callback(disable_progress_bars)  # as the last one: transformers switches the hub's bars with its own
        for library in (diffusers_logging, transformers_logging):
            if library.is_progress_bar_enabled():
                library.disable_progress_bar()
                put_back.callback(library.enable_progress_bar)
        put_back.callback(transformers_logging.set_verbosity, transformers_logging.get_verbosity())
        transformers_logging.set_verbosity_error()
        yield
