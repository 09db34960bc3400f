"""A take's way from noise to latents, and how it goes on after a stop."""
