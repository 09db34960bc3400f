"""A job as people write it: read, checked, and planned take by take. Reserves and loads nothing."""
