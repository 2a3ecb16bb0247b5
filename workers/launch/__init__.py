"""From a placement to running actors; in the driver."""
