"""What recipes need to know of a model before it is cached: plans, ratios, coefficients. One file a method. Knows numbers, not models."""
