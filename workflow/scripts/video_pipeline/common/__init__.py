"""What every room uses: files, locks, processes, logs, progress, plugins."""
