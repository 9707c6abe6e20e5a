"""The gate between the learner and the actors: what was verified goes out, and nothing else.

sample-factory shares the learner's own parameters with the policy workers, so that an actor may load weights from the middle of
an update. Here the learner trains a private policy; what they see changes only through `PublicationGate.publish`, which takes
the verifier's word for the state that it publishes.
"""

from __future__ import annotations

from collections.abc import Sequence

from sf_fixpo.learning.mailbox import Mailbox
from sf_fixpo.learning.policy import Policy
from sf_fixpo.learning.verification import GuaranteeError, Verified, Verifier


class PublicationGate:
    """The only writer of the published policy, of what other processes see of it, and of its version.

    Attributes:
        published: the policy; in serial mode the actors' own.
        version: of `published`.
    """

    def __init__(self, published: Policy, verifier: Verifier, mailbox: Mailbox, places: Sequence[Policy] = ()):
        """Takes over the published policy.

        Args:
            published: of this process.
            verifier: whose word is taken.
            mailbox: by which other processes learn of new weights.
            places: two policies with the same state whose memory is shared; none where no other process acts.
        """
        self.published = published
        self.version = mailbox.version
        self._verifier = verifier
        self._mailbox = mailbox
        self._places = places

    def publish(self, verified: Verified, version: int) -> None:
        """Copies the verified state to the published policy and to where other processes read it, then raises its version.

        Raises:
            TypeError: not the verifier's word.
            GuaranteeError: it is for a state that has changed since, or another verifier's.
        """
        if not isinstance(verified, Verified):
            raise TypeError(f"only what was verified can be published, not a {type(verified).__name__}")
        if verified.verifier is not self._verifier or verified.generation != self._verifier.generation:
            raise GuaranteeError("the state to publish is not the one that was verified")
        staged = self._verifier.staged.state
        self.published.state.copy_(staged)

        def write(place: int) -> None:
            if self._places:
                self._places[place].state.copy_(staged)

        self._mailbox.put(write, version)
        self.version = version
