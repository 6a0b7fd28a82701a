"""What several tests need: commands, the template, rendered projects, a view of the machine."""
