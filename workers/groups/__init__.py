"""One call for all processes of a role; in the driver."""
