"""The rule ``consolidate``: records, rank files and the output."""
