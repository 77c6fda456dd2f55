"""Speed, beside the baseline and the machine's limit."""
