"""`python -m iopaint_core` is `iopaint-core`."""

from iopaint_core.cli import main

if __name__ == "__main__":
    main()
