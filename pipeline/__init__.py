"""Models and film: families, the denoising loop, timelines for long takes, decoding, film files, the demo model. Never imports Ray."""
