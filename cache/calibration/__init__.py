"""What a recipe's sites see of a model that is not cached: what calibrations are made from."""
