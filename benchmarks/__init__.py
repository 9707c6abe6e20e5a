"""Measurements of this package beside stock sample-factory, and the synthetic learners and batches they run on."""
