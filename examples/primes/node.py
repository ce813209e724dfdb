from TaskSprintNode import *

class Primes(TaskSprintNode):
    def count(self, first, end):
        return {"primes": sum(is_prime(n) for n in range(first, end))}

    def add(self, *counts):
        return {"primes": sum(counts)}

def is_prime(n):
    return n > 1 and all(n % divisor for divisor in range(2, int(n**0.5) + 1))

Primes().start()
