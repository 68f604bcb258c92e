"""The page and its server: `exhubert app`, or the folder pushed as a Space."""
