"""Runs programs that nobody trusts; knows nothing of rewards.

`sandbox.py` is what callers use. `inside/` is what runs within the sandbox: standard library only,
and it never imports the rest of rlstack, which is not there.
"""
