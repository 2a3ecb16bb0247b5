"""The pluggable reward registry and the rewards that ship with it."""
