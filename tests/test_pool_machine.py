"""The pool's state machine, searched for longer than by `test_pool.py`."""

import pytest
from hypothesis import settings
from pool_machine import PoolMachine


@pytest.mark.slow
class TestPool(PoolMachine.TestCase):
    settings = settings(max_examples=3000, stateful_step_count=30, deadline=None)
