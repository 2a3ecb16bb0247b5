"""`rlstack rewards`: list, test, new, serve, reliability."""
