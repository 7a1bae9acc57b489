"""Options, statistics and weights come in, calibration tables with their evidence go out."""
