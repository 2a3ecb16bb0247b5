"""Rewards behind HTTP: both sides."""
