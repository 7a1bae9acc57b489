"""Statistics of activations: ranges and histograms, counted, merged, and kept in files."""
