"""Whole-take checks: whether a take freezes, loops, drifts or jumps, told from its frames as they stream by."""
