"""What becomes of takes that are not done yet: what they go on from, and what is tried after a failure."""
