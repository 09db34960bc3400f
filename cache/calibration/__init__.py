"""Recording what a recipe's sites see in takes without a cache, from which calibrations are worked out."""
