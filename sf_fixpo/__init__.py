"""FixPO (Zentner et al. 2023) as a learner for sample-factory: a trust region that holds on every policy update."""

__version__ = "0.1.0"
