"""What the supervised and preference commands train on."""
