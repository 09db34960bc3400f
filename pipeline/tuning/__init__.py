"""The search for the recipe that serves a take best, on a short clip that stands for it."""
