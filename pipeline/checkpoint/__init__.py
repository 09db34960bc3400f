"""What a checkpoint folder says of itself, and the hash of all that it holds. Loads no weights."""
