"""Generated from proto/agentrpc/v1 by ./scripts/generate. Never edited."""
