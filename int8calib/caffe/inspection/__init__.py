"""What a model is, costs and needs for INT8, told from its files without running anything."""
