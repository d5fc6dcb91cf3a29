"""Stages of the post-training line; each module is a command that runs inside the image."""
