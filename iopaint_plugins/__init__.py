"""First-party plugins. Each uses the public names of `iopaint_core` alone, as any third party's would."""
