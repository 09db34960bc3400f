"""Who is compared: longtake's own recipes and what a user has without longtake."""
