"""What films are encoded with: the codec, its settings, and whether this machine's ffmpeg has it. Imports nothing that is slow to import."""

from __future__ import annotations

import subprocess

from imageio_ffmpeg import get_ffmpeg_exe

ENCODER = "libx264"
CRF = 16  # x264's constant rate factor; 0 is lossless, 23 its default, below 18 hardly told from the source by eye
MOVFLAGS = "+faststart+use_metadata_tags"  # players need not read the whole file first; metadata keys are free


def check_encoder() -> None:
    """Raise ValueError, with the mend, where this machine's ffmpeg does not run or cannot encode our films."""
    mend = "pip install imageio-ffmpeg, which brings one, and unset IMAGEIO_FFMPEG_EXE"
    try:
        command = [get_ffmpeg_exe(), "-hide_banner", "-encoders"]
        encoders = subprocess.run(command, capture_output=True, text=True, check=True, errors="replace").stdout
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"ffmpeg does not run ({error}); {mend}.") from None
    if f" {ENCODER} " not in encoders:
        raise ValueError(f"'{command[0]}' lacks {ENCODER}, which films are encoded with; {mend}.")
