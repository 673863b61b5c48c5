"""Starting a run, going on with it, executing its schedule, repairing it. Imports `infer` and below."""
