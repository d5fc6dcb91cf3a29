"""Exit codes of `run_pipeline.py`."""

PROMOTED = 0  # the model was published; of a sweep that ends there, a winner was found
ERROR = 1
STOPPED = 2  # by a gate
INTERRUPTED = 130  # what a shell says of a process that Ctrl-C ended
