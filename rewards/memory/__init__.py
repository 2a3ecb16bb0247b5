"""Rewards that remember."""
