"""The state machines of the product, printed as tables."""
