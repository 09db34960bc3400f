"""Which recipe a take is rendered with, and what its cache will hold. Loads nothing."""
