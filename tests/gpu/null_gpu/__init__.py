"""A GPU that computes nothing, under TensorFlow's own wheel."""
