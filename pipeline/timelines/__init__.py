"""How a take's latent frames are shown to the model: in which rounds, and in which calls of a step."""
