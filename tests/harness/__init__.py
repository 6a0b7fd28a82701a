"""What the harness promises to tests, seen from rendered and small services."""
