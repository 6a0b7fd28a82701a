"""The golden database: what it depends on, how it is built, what it holds."""
