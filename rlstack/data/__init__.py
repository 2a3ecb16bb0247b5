"""Prompts: sources, row schemas, chat templates, sampling and packing."""
