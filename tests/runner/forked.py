"""A step that tells which process has started it."""

import os

print(os.getppid())
