"""What is measured, by name."""
