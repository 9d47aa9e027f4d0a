"""What is known of the carried state."""
