"""Fuzzers: what strangers, users and their programs may send, made up by the thousand.

A fuzzer is a module of this package with two names:

    NAME            what `--only` calls it
    run(seconds, seed) -> Outcome
                    feeds inputs for about so long, each made from (seed, its number) alone,
                    as by `input_random`; what is wrong is a finding, and ends nothing

`python -m tests.fuzz --seconds 60` runs all of them, each alone in a process of its own.
"""
