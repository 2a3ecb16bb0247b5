"""Typed run configuration: frozen pydantic models, one file per Hydra group."""
