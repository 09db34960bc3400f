"""A recipe as people write it: read, checked, fitted to a model, and what it will hold. Imports no torch."""
