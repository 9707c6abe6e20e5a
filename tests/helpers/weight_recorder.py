"""Trains with every process writing down which weights it loads or publishes.

    python tests/helpers/weight_recorder.py LOG {publish,leak} [flags of sf_fixpo.train]

LOG gets one JSON line for each event: `what` (`published` or `loaded`), `pid`, `version` and `digest`, the SHA-256 over
all tensors of the policy, its observation normaliser included. `leak` is for showing that a leak would be seen: after each
gradient step it shares the private weights and raises the version, as sample-factory's own learner does.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time

import sf_fixpo.running.preparing
from sf_fixpo import train
from sf_fixpo.learning.learner import FixPOLearner
from sf_fixpo.learning.mailbox import MailboxClient
from sf_fixpo.learning.publication import PublicationGate
from sf_fixpo.records.update_log import append_row
from sf_fixpo.running.supervision import RunContext

_LEAK_SECONDS = 0.05  # policy workers have an answer to give every few milliseconds


def digest(model) -> str:
    """SHA-256 over names and values of all tensors, in whatever layout they lie."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def wrapped(owner: type, method: str, afterwards) -> None:
    """Has `owner.method` call `afterwards`, with the same arguments, when it is done."""
    original = getattr(owner, method)

    def call(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        afterwards(self, *args, **kwargs)
        return result

    setattr(owner, method, call)


class RecordingContext(RunContext):
    """Installs the recorder in every process of the run: unpickling it is the first thing that each of them does."""

    log = ""
    leak = False

    def __setstate__(self, state):
        super().__setstate__(state)
        self.install()

    def write(self, what: str, model, version: int) -> None:
        append_row(self.log, {"what": what, "pid": os.getpid(), "version": int(version), "digest": digest(model)})

    def install(self) -> None:
        """Wraps the methods by which weights leave the learner and reach a policy worker."""
        self._seen_updates = 0
        wrapped(PublicationGate, "__init__", lambda gate, *_: self.write("published", gate.published.model, gate.version))
        # what the verifier has vouched for: its own weights, not what others make of the shared ones
        wrapped(
            PublicationGate,
            "publish",
            lambda gate, verified, version: self.write("published", verified.verifier.staged.model, version),
        )
        wrapped(MailboxClient, "on_weights_initialized", self.loaded)
        wrapped(MailboxClient, "ensure_weights_updated", self.loaded_again)
        if self.leak:
            wrapped(FixPOLearner, "_after_optimizer_step", self.share_too_early)

    def loaded(self, client, *_) -> None:
        self.write("loaded", client.actor_critic, client.policy_version)

    def loaded_again(self, client, *_) -> None:
        if client.num_policy_updates > self._seen_updates:
            self._seen_updates = client.num_policy_updates
            self.loaded(client)

    def share_too_early(self, learner, *_) -> None:
        places = learner.gate._places
        learner.param_server.mailbox.put(lambda place: places[place].state.copy_(learner.candidate.state), learner.train_step)
        time.sleep(_LEAK_SECONDS)


def main() -> int:
    import weight_recorder  # by this name children find the context; here it would be __main__

    log, mode, *argv = sys.argv[1:]

    def recording_context():
        context = weight_recorder.RecordingContext()
        context.log, context.leak = log, mode == "leak"
        return context

    sf_fixpo.running.preparing.RunContext = recording_context
    return train.main(argv)


if __name__ == "__main__":
    sys.exit(main())
