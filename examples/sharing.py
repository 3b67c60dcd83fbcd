"""Lists the models of this machine, loads two of them, and prints what they share.

python examples/sharing.py MODEL MODEL
"""

import sys

from iopaint_core import ModelManager

manager = ModelManager()
if len(sys.argv) != 3:
    for info in manager.scan().models:
        print(f"{info.name}  ({info.type.value})")
    sys.exit("Name two of them, fine-tunes of one base model for example.")

leases = [manager.load(name) for name in sys.argv[1:]]
stats = manager.pool.stats()
for held in stats.components:
    users = " and ".join(str(user) for user in held.users)
    print(f"{held.nbytes / 1e6:10,.1f} MB  {held.key}  in {users}")
print(f"{stats.saved / 1e6:10,.1f} MB saved by sharing")
for lease in leases:
    lease.close()
