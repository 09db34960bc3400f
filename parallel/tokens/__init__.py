"""Which tokens a rank holds, and how they are shared out and brought together."""
