"""Caffe layer types: parameters, weights and bottoms come in, tops go out."""
