"""The model gateway: the only way from an agent to a model, and the only place that knows the provider key."""
