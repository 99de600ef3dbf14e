"""The fake CLI. Standard library alone: it runs with `python -I -S` from an archive that `write_cli` makes."""
