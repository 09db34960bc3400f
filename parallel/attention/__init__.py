"""Attention over tokens that are spread over ranks."""
