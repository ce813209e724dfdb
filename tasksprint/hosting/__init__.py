"""Decisions of one replica about users' schedulers: with a clock, and not replicated.

host      feeds one job's scheduler, compares and proposes its answers, restarts it
states    the states of a scheduler's process, as a table
history   the part of a job's history that a host has in memory
feed      the event lines for the process: which it is sent, and when
queue     its answers that aren't chosen yet, and who proposes them when
restarts  how often it is started again, and when
words     events and answers of a scheduler in words, for its author
types     answers of the process to a host, and orders of the host to its shell
claims    claims of replicas about their states, and the replicas that are wrong
raising   when a leader raises the rules of the log
"""
