"""What is judged: pure functions from evidence to findings."""
