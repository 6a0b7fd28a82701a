"""What is looked at beside the database."""
