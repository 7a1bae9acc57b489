"""A network as ncnn runs it with a table: its INT8 arithmetic, in numpy."""
