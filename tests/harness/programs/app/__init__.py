"""A service that is nothing but a database of many kinds of things."""
