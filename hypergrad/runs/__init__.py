"""What every trained thing shares: configuration, run directory, outer loop, progress, event files and the curve."""
