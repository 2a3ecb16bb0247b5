"""Models as functions of packed rows, their adapters and weights."""
