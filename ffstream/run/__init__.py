"""Starting and resuming a run, executing its schedule, and repairing it. Imports `infer` and below."""
