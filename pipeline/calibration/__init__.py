"""Measuring a model for the recipes whose numbers belong to it. A file a method."""
