"""What is stored and sent, to the byte, in each version that there was (golden.py)."""
