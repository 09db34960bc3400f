"""Training the parts of the demo model: a file a part, and the loop that they share."""
