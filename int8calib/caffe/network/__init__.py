"""A Caffe network that is not running yet: its graph, shapes, weights and quantized layers."""
