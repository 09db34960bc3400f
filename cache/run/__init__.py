"""A recipe at work: which call of which step this is, what is decided for it, and what is kept."""
