"""UAR, for the package and as a module of the `evaluate` library."""
