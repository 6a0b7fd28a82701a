"""Newer versions: what an update makes of old projects, and how a release is made."""
