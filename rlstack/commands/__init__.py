"""One module per command, and the one loop, wiring and preflight that they share."""
