"""The workflow of the support desk. Importing it does not import LangGraph."""
