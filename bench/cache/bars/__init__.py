"""The figures that have a bar, worked out from what was measured."""
