"""Reading videos."""

READER_VERSION = 2
"""Part of the resume fingerprint: raised when the same file would give other frames."""
