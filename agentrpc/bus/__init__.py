"""Redis: the live tail, signals and rate limits. Lose it all and nothing is lost but time."""
