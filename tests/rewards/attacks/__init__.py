"""Programs that try to earn a reward without doing the task, or to harm the host."""
