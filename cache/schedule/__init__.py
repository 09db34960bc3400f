"""Schedules: the noise levels at which a take calls its model, chosen by us and set on diffusers' schedulers."""
