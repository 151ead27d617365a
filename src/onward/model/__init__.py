"""Base models: find, load without remote code, score, sample, export."""
