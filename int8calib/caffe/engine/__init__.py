"""A running network: a graph and batches come in, tops go out one at a time."""
