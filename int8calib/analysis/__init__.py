"""Where INT8 loses accuracy: the error of each layer, and what it does to the outputs."""
