"""The commands that talk to a service, and `up`, which runs one."""
