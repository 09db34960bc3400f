"""Train the demo model, part by part: `python -m longtake.pipeline.demo.train PART --minutes 30`.

Every part resumes from its own checkpoint in the folder given by `--work`; its command and its loss go to training_log.jsonl there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .training.trainer import Schedule, log_command

_LEARNING_RATES = {"vae": (2e-3, 5e-5), "decoder": (7e-4, 2e-5), "text": (1e-3, 2e-5), "dit": (1.2e-3, 2e-5)}  # first and last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("vae", "decoder", "latents", "text", "dit", "export"))
    parser.add_argument("--minutes", type=float, default=30, help="training time in all, resumed runs included")
    parser.add_argument("--since", type=float, default=0, help="minute at which the learning rate starts to fall from its peak")
    parser.add_argument("--peak-lr", type=float, help="another peak, for going on with a trained part")
    parser.add_argument("--work", type=Path, default=Path("demo-training"), help="folder of checkpoints, latents and the log")
    parser.add_argument("--clips", type=int, default=4000, help="latents: how many clips to encode")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model", help="export: the checkpoint folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.part in _LEARNING_RATES:
        peak, final = _LEARNING_RATES[options.part]
        schedule = Schedule(options.minutes, options.peak_lr or peak, final, options.since)
        arguments = f"--minutes {schedule.minutes:g} --since {schedule.since:g} --peak-lr {schedule.peak_lr:g}"
        log_command(options.work, f"{options.part} {arguments}")
    if options.part in ("vae", "decoder"):
        from .nets import build_vae
        from .training.vae import DEMO_FOOTAGE, held_out_psnr, train_decoder, train_vae

        if options.part == "vae":
            vae = train_vae(build_vae(), DEMO_FOOTAGE, options.work, schedule, device)
        else:
            vae = train_decoder(options.work, schedule, device)
        vae.save_pretrained(options.work / "vae")
        print(f"held-out clips reconstruct at {held_out_psnr(vae):.2f} dB")
    elif options.part == "latents":
        from .training.dit import encode_clips

        log_command(options.work, f"latents --clips {options.clips}")
        encode_clips(options.work, options.clips, device)
    elif options.part == "text":
        from .training.text import train_text

        train_text(options.work, schedule, device)
    elif options.part == "dit":
        from .training.dit import train_dit

        train_dit(options.work, schedule, device)
    else:
        from .export import export

        export(options.work, options.out)


if __name__ == "__main__":
    main()
