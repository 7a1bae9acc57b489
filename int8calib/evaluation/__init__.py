"""A network, its tables and images come in; what INT8 costs, as a whole and by layer, goes out."""
