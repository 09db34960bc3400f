"""The films that are compared, and how far two of them are apart."""
