"""The template's own tests: render it, and run what it renders for real."""
