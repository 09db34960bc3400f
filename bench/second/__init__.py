"""The second model of the benchmark: another small Wan, of other latents and another world than the demo model's."""
