"""Jobs and recipes that come with longtake, as package data."""
