"""Exit codes of `run_pipeline.py`."""

PROMOTED = 0  # the model was published and, unless promote is off, made current; a sweep that ends there has a winner
ERROR = 1
STOPPED = 2  # by a gate
INTERRUPTED = 130  # what a shell says of a process that Ctrl-C ended
