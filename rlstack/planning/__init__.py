"""What happens between phases, as data: pure functions, tested without any device."""
