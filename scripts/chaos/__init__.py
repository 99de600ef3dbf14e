"""The fault suite: random traffic against a whole service, one fault at a time, and a checker of what came of it."""
