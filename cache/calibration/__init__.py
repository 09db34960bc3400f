"""What recipes need to know of a model before it is cached: plans, ratios, coefficients. Knows numbers, not models."""

from .planned import Plan, plan_steps

__all__ = ["Plan", "plan_steps"]
