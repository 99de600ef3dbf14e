"""The embedded default: PostgreSQL and Redis from wheels, and a scripted stand-in for a model."""
