"""The Ray actors that render takes together: placed, connected, given orders, heard and ended."""
