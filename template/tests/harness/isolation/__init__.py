"""What keeps a test from the next one."""
