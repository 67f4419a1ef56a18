"""Prints every hundredth prime below a limit, and a digest of all of them."""
import hashlib
import random
import sys

limit = int(sys.argv[1])
digest = hashlib.sha256()
generator = random.Random(7)
primes = []
for number in range(2, limit):
    prime = True
    for divisor in primes:
        if divisor * divisor > number:
            break
        if number % divisor == 0:
            prime = False
            break
    if prime:
        primes.append(number)
        digest.update(f"{number},{generator.random():.6f};".encode())
        if len(primes) % 100 == 0:
            print(len(primes), number, digest.hexdigest(), flush=len(primes) % 1000 == 0)
print("done", len(primes), digest.hexdigest())
