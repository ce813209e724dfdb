"""Decisions of one replica about users' schedulers: with a clock, and not replicated.

host      feeds one job's scheduler, compares and proposes its answers, restarts it
history   the part of a job's history that a host has in memory
queue     answers that aren't chosen yet, and commands that propose them
words     events and answers of a scheduler in words, for its author
types     answers of the process to a host, and orders of the host to its shell
claims    claims of replicas about their states, and the replicas that are wrong
raising   when a leader raises the rules of the log
"""
