"""What is decided for users' schedulers on one replica: with a clock, and not replicated.

host      what one job's scheduler is sent, what its answers are worth, when it is restarted
history   the part of a job's history that a host has in memory
queue     answers that aren't chosen yet, and commands that propose them
words     what a scheduler was told and what it answered, for its author
types     what a host takes from its process, and what it gives to its shell
claims    what replicas say of their states to each other, and who is wrong if they differ
"""

from __future__ import annotations

__all__: list[str] = []
