"""Caches against each other and against fewer steps: who is compared, on which films, and what came out."""
