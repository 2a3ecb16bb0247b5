"""Rewards that need nothing but the response and the row."""
