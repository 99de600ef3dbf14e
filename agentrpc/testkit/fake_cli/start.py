"""The directives of the start. `agentrpc.testkit.write_cli` puts another text here."""

__all__ = ["START"]

START = ""
