"""The `agentrpc` command."""

from agentrpc.handover import take_over

__all__ = ["main"]


def main() -> None:
    """The entry point."""
    take_over()
    # Slow: what was handed to this process must not lie about meanwhile.
    from agentrpc.app import app  # noqa: PLC0415

    app()


if __name__ == "__main__":
    main()
