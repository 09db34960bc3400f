"""What people are shown: progress, traces, tables."""
