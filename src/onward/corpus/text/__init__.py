"""Text as the compiled rules see it: bytes of many documents in one buffer, their characters, their words."""
