"""A gang's ranks: how they are arranged, and what they exchange. Knows process groups, no tokens."""
