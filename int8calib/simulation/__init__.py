"""A network and its table come in, a network that runs in ncnn's INT8 arithmetic goes out."""
