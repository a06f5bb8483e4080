"""Who tests the tester: every check is held against a fault that must turn it red, and a good run that must not."""
