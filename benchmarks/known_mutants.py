"""Mutants that people have looked at: those made by hand, and those that no test can notice."""

from __future__ import annotations

# (file, text, replacement): what reviews tried by hand on an older learner, and no test noticed then.
BY_HAND = (
    ("learning/verification", "self._batch.valids[part], ids)", "self._batch.valids[part] | True, ids)"),
    ("learning/improvement", "kl_penalty(kl, minibatch.valids, beta,", "kl_penalty(kl, minibatch.valids | True, beta,"),
    ("algorithm/trust_region", "CHECK_MARGIN = 1e-3", "CHECK_MARGIN = 0.0"),
    ("learning/policy", "with full_precision():", "if True:"),
    (
        "learning/policy",
        "policy = cls(model.requires_grad_(False).eval(), shared=shared)",
        "policy = cls(model.train(), shared=shared)",
    ),
    ("learning/mailbox", "write(turn % 2)\n        self._settle()", "write(turn % 2)"),
    ("learning/mailbox", "<= turn + 1", "<= turn + 2"),
    ("learning/improvement", "progress.learning_rate * scale[0]", "progress.learning_rate / progress.valid_fraction * scale[0]"),
    ("learning/beginning", "else published.observe(batch.raw_obs)", "else batch.obs"),
    (
        "learning/beginning",
        "batch.parameters(published, obs,",
        "batch.parameters(learner.candidate, batch.obs,",
    ),
    (
        "learning/beginning",
        "learner.divergence.per_state(previous, batch.behaviour)",
        "learner.divergence.per_state(batch.behaviour, previous)",
    ),
    ("learning/graphs", "if (settings, places) != self._recorded_with:", "if self._recorded_with is None:"),
    ("learning/graphs", "[x.detach().clone() for x in tensors]", "[x.detach() for x in tensors]"),
    ("learning/learner", "aim = self.fixpo.limit / self.fixpo.c_beta", "aim = self.fixpo.limit"),
)

# (file, line as mutated) -> why no test can notice. Written after looking at each survivor.
EQUIVALENT: dict[tuple[str, str], str] = {
    ("algorithm/losses", "weight = beta.squeeze( -1) if task_ids is None else beta[task_ids]"): (
        "beta has one dimension, of one entry there: both are that entry"
    ),
    ("algorithm/multiplier", "grad = torch.where(present, grad, 1.0)"): (
        "what is made of the entry of a task without a sample is thrown away below"
    ),
    ("algorithm/trust_region", "parts = zip(spec, p.split(sizes, dim=-1), q.split(sizes, dim=-1), strict=False)"): (
        "sizes are made from spec, so the lengths are equal"
    ),
    (
        "algorithm/trust_region",
        "parts = zip(spec, p.split([_KL[kind][0] * size for kind, size in spec], dim=-1), strict=False)",
    ): "sizes are made from spec, so the lengths are equal",
    (
        "algorithm/trust_region",
        "kl: Tensor, mask: Tensor, stat: str, task_ids: Tensor | None = None, num_tasks: int = 2",
    ): "without task ids the number of tasks is not read, with them it is always given",
    ("algorithm/trust_region", "num_tasks: int = 2"): (
        "without task ids the number of tasks is not read, with them it is always given"
    ),
    ("algorithm/trust_region", "lowest, steps_since_lowest = math.inf, 1"): (
        "every statistic is below infinity: the first violation sets both anew"
    ),
    ("learning/verification", "self.kl_of.update(zip(starts, kl.split(sizes), strict=False))"): (
        "split by the very sizes gives as many parts"
    ),
    ("learning/verification", "self.pi_of.update(zip(starts, pi.split(sizes), strict=False))"): (
        "split by the very sizes gives as many parts"
    ),
    (
        "learning/verification",
        "self._values.update(zip((part.start for part in slices), values, strict=False))",
    ): "one statistic is computed for each slice",
    ("learning/verification", "self.generation = 1"): "generations are only compared with each other",
    ("learning/verification", "self.generation += 2"): "generations are only compared with each other",
    (
        "learning/state",
        "key = (tensor.dtype, tensor.device, tensor.untyped_storage().data_ptr() or +id(tensor))",
    ): "any number that is the empty tensor's own will do",
    (
        "learning/state",
        "key = (tensor.dtype, tensor.device, tensor.untyped_storage().data_ptr() or id(tensor))",
    ): "any number that is the empty tensor's own will do",
    (
        "learning/state",
        "return int(tensor.storage_offset()) + 1 + sum((n - 1) * s for n, s in zip(tensor.size(), tensor.stride(), strict=False))",  # noqa: E501
    ): "a tensor has a stride for each of its dimensions",
    ("learning/state", "step = max( 2, _ALIGNMENT // dtype.itemsize)"): "no number is larger than 128 bytes",
    (
        "learning/policy",
        'reduced = [(leaf, kind) for leaf, kind in zip(leaves, before, strict=False) if kind not in ("ieee", "none")]',
    ): "one setting is read of each leaf",
    ("learning/policy", "def observe(self, raw: dict[str, Tensor]) -> TensorDict:"): (
        "without `no_grad`: neither what comes in nor the statistics ask for a gradient"
    ),
    ("learning/batch", "values_per_sample = sum(obs[ 1].numel() for obs in self.obs.values())"): (
        "all samples of a batch are of one size, and there are two at least: a standard deviation takes two"
    ),
    ("learning/batch", "starts = np.random.permutation(np.arange( 1, len(self), self.recurrence))"): (
        "they are divided by the recurrence, and rounded down, in the next line"
    ),
    ("learning/batch", "return list((starts // self.recurrence).reshape(- 2, size // self.recurrence))"): (
        "NumPy takes any negative number for 'what is left'"
    ),
    (
        "learning/batch",
        "samples = (part[:, None] * self.recurrence + np.arange(self.recurrence)).reshape(- 2)",
    ): "NumPy takes any negative number for 'what is left'",
    ("learning/improvement", "progress.bad = progress.bad | ~(loss.detach() - norm).isfinite()"): (
        "the difference of two numbers is finite where their sum is, short of float32's largest"
    ),
    ("learning/self_test", "far = torch.where(comparable, _far(found, batch.behaviour), 1.0)"): (
        "1 is inside as well, and below whatever is outside"
    ),
    ("learning/self_test", "return bool((torch.where(valids, _far(found, reference), 1.0) > 1.0).any())"): (
        "1 is inside as well"
    ),
    (
        "learning/self_test",
        "return [parameter for parameter, gradient in zip(parameters, gradients, strict=False) if gradient is not None]",
    ): "torch gives a gradient, or None, for each",
    (
        "learning/sequences",
        "self._ends = ends.reshape(- 2, recurrence).copy()",
    ): "NumPy takes any negative number for 'what is left'",
    ("learning/sequences", "ends = self._ends[trajectories].reshape(- 2)"): "NumPy takes any negative number for 'what is left'",
    (
        "algorithm/config",
        '"learning_rate": 1.0001,',
    ): "what stands for a missing learning rate only has to be above 0",
    (
        "algorithm/flags",
        'default: Any, help_text: str, /, choices: tuple[str, ...] = (), allowed: str = "", valid: Callable | None = None',
    ): "both kinds of arguments are given as they are marked, everywhere in the file",
}
