from hypothesis import settings
from pool_machine import PoolMachine

TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=3000, stateful_step_count=30, deadline=None)
