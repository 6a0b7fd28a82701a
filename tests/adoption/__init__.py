"""The harness alone, in services that this template did not make."""
