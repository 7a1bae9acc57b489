"""ncnn's models: the only place that knows ncnn's own files."""
