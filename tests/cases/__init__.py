"""Concerns that cross rooms, one in each file: what went wrong in use, with what is right."""
