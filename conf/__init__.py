"""Hydra configuration files of the `rlstack` commands."""
