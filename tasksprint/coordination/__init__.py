"""The coordinator's replicated state machine; how to find your way is said here later."""
