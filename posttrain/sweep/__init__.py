"""Sweeps: many trials of the line's training stages, judged by its gates, and the best of them."""
