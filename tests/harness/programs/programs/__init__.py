"""Random programs that use a database, and what must be true after each of them."""
