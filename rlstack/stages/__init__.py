"""The runnable stages behind the `rlstack` command."""
