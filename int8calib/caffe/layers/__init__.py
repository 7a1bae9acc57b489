"""Caffe layer types: one shape rule and one pure function of arrays for each."""
