"""What runs in a DeepSpeed process."""
