"""Arithmetic on flat fp32 tensors: codecs, error feedback, aggregation, flattening. No peers, no waiting."""
