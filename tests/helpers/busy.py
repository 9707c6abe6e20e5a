"""Settings under which a small learner has everything to do."""

# more than one epoch of more than one minibatch, at a learning rate that needs the fixup phase
BUSY = {
    "num_epochs": 2,
    "num_batches_per_epoch": 2,
    "batch_size": 32,
    "learning_rate": 3e-2,
    "normalize_input": True,
    "eps_kl": 0.1,
}
