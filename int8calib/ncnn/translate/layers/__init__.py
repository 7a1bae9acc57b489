"""ncnn layers that Caffe has nothing like, as layers of the numpy engine."""
