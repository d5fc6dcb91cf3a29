"""Drafts a configuration for a user's own model and data; what `start.py` does."""
