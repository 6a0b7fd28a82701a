"""The agents of the support desk. Import them from their modules."""
