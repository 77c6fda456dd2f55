"""What attention shows, in numbers and pictures."""
