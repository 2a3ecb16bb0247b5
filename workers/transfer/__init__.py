"""Weights on their way from trainer to engines; both ends."""
