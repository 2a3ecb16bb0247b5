"""What runs in a vLLM process."""
