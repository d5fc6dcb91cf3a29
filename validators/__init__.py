"""Gates of the post-training line; each module measures one stage's result and judges it against the limits."""
