"""The Claude Agent SDK and its CLI: launching, options, frames, transcripts. Nothing else imports the SDK."""
