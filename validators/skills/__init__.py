"""General skills: bundled suites that base and candidate answer side by side, so that what training lost is seen."""
