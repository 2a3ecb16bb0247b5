"""Rewards in child processes, and the driver's side of them."""
