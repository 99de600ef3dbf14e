"""The Claude Agent SDK and its CLI: launching, options, raw frames, transcripts. The only place that imports the SDK."""
