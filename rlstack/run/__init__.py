"""The run directory: what a run writes, and reading it again."""
