"""A pool of workers whose results come in order; each counts what it has done so far in a lock that all share."""
import hashlib
import multiprocessing
import os
import sys


def begin(shared):
    global counter
    counter = shared


def work(number):
    digest = b"%d" % number
    for _ in range(6000):
        digest = hashlib.sha256(digest).digest()
    with counter.get_lock():
        counter.value += 1
    return number, digest.hex()


def main():
    count = int(sys.argv[1])
    counter = multiprocessing.Value("l", 0)
    with multiprocessing.Pool(3, begin, (counter,)) as pool:
        for number, digest in pool.imap(work, range(count), chunksize=2):
            print(number, digest, flush=True)
        pool.close()
        pool.join()
    print("all", counter.value, flush=True)


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
