"""A model's files come in; what the network is, costs and needs for INT8 goes out, nothing run."""
