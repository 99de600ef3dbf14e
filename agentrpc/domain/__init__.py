"""Pure rules: what may happen, decided without I/O."""
