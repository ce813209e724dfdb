"""Small inputs that once did the wrong thing, each with the right value."""
