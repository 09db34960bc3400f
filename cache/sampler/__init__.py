"""Samplers: what diffusers' schedulers make of a model's outputs. Knows no models."""
