"""What the tests of the pool share: weights without torch, threads with a watchdog."""

import faulthandler
import multiprocessing
import sys
import threading

from iopaint_core import Component

WATCHDOG = 60  # seconds; a hang fails the test, with all stacks, instead of hanging it


class Weights:
    """Stands for weights in memory; knows whether it was closed, and can be written into."""

    def __init__(self, key, nbytes=0):
        self.key = key
        self.nbytes = nbytes
        self.closed = 0
        self.written = set()
        """Who wrote into it."""

    def close(self):
        self.closed += 1


def component(key, nbytes=1, *, load=None, **options):
    options.setdefault("close", Weights.close)
    return Component(key, load or (lambda *parts: Weights(key, nbytes)), nbytes, **options)


def model(*components):
    """A loader of a model that is its components, by key."""
    return lambda share: share({part.key: part for part in components})


def watched(thread):
    thread.join(WATCHDOG)
    if thread.is_alive():
        faulthandler.dump_traceback(sys.__stderr__)
        raise AssertionError("a caller hangs; see the stacks above")


def in_thread(call):
    """Start `call` in a thread; calling what is returned waits for it, and gives or raises what it did."""
    outcome = []

    def run():
        try:
            outcome.append((call(), None))
        except BaseException as error:  # noqa: BLE001 - raised again below
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result():
        watched(thread)
        value, error = outcome.pop()
        if error is not None:
            raise error
        return value

    return result


def together(count, call):
    """Run `call(i)` in threads that start at one moment; the results in order, errors as results."""
    start = threading.Barrier(count)
    results = [None] * count

    def run(i):
        start.wait(WATCHDOG)
        try:
            results[i] = call(i)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        watched(thread)
    return results


def in_child(check):
    """Whether `check` raises nothing in a forked child."""
    process = multiprocessing.get_context("fork").Process(target=check)
    process.start()
    process.join(WATCHDOG)
    hangs = process.is_alive()
    process.kill()
    assert not hangs
    return process.exitcode == 0


def until(condition):
    """Wait for something that another thread does, and no event tells."""
    for _ in range(WATCHDOG * 1000):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never came to that")


class Gate:
    """Opens once; whoever passes waits for that, at most as long as the watchdog."""

    def __init__(self):
        self._event = threading.Event()
        self.reached = threading.Event()

    def open(self):
        self._event.set()

    def wait(self):
        self.reached.set()
        assert self._event.wait(WATCHDOG), "the gate was never opened"

    def wait_until_reached(self):
        assert self.reached.wait(WATCHDOG), "nobody came to the gate"
