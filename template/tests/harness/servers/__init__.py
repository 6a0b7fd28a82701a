"""The servers: embedded, or refused before anything is touched."""
