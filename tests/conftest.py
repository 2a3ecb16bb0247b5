"""Shared real-stack fixtures: engines and trainers cost 10-50 s to start, so tests share them."""
