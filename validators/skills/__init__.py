"""General skills: bundled suites that base and candidate answer side by side, to show what training lost."""
