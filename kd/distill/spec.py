"""The teacher's configuration node, parsed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kd.distill.methods import DISTILLERS
from kd.distill.mutual import nodes_of
from kd.distill.teacher_options import TeacherOptions
from kd.errors import InputError
from kd.models.names import name_of
from kd.models.weights import prepare
from kd.registry import current, parameters_of, split

Config = Mapping[str, Any]
WEIGHTS = ("checkpoint", "checkpoint_key")
NOT_OPTIONS = ("members", "min_accuracy", "shuffle", "trainer")  # of an ensemble's node: read by kd, not by Ensemble


@dataclass(frozen=True)
class MemberSpec:
    """One network of a teacher.

    Attributes:
        name: ``""`` for a single teacher.
        key: its configuration key, for messages.
        node: the configuration of its network, with its teacher options.
    """

    name: str
    key: str
    node: Config

    def options(self) -> dict[str, Any]:
        """The options of :class:`TeacherOptions` and :func:`prepare` that the node sets.

        Raises:
            InputError: the network itself has a parameter ``checkpoint``, which is ambiguous.
        """
        if "checkpoint" in parameters_of(self.node, self.key):
            raise InputError(
                f"{self.key}: {self.node['_target_']} has a parameter `checkpoint`, which conflicts with kd's option "
                "for the teacher's weights; rename the parameter"
            )
        return split(self.node, self.key, prepare, TeacherOptions)[1]

    def without_weights(self) -> dict[str, Any]:
        """The node without its weight file."""
        return without_weights(self.node, self.key)


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher's configuration node.

    Attributes:
        kind: ``none``; ``frozen``, one network; ``ensemble``, several; ``online``, a teacher that changes in training.
        members: its networks; the peers in mutual learning, one for a moving average.
        node: the node itself.
    """

    kind: Literal["none", "frozen", "ensemble", "online"]
    members: tuple[MemberSpec, ...]
    node: Config

    @classmethod
    def parse(cls, node: Config | None) -> TeacherSpec:
        """Parses a configuration's ``teacher``.

        Raises:
            InputError: a peer is not a network.
        """
        if not node or not node.get("_target_"):
            return cls("none", (), node or {})
        single = (MemberSpec("", "teacher", node),)
        if current(node["_target_"]) in DISTILLERS:
            peers = nodes_of(node["peers"]) if "peers" in node else {}
            members = tuple(MemberSpec(name, f"teacher.peers.{name}", peer) for name, peer in peers.items())
            return cls("online", members or single, node)
        if "members" in node:
            named = [MemberSpec(name, f"teacher.members.{name}", each) for name, each in node["members"].items()]
            return cls("ensemble", tuple(named), node)
        return cls("frozen", single, node)

    @property
    def online(self) -> bool:
        """Whether the teacher changes in training."""
        return self.kind == "online"

    @property
    def display_name(self) -> str:
        """The name in tables; an ensemble's lists its members; ``""`` if there are no networks."""
        return "+".join(member.name or name_of(member.node) for member in self.members)

    @property
    def shuffle(self) -> bool:
        """Whether, as a control, each training sample gets the teacher's output for another sample."""
        return bool((self.members[0].options() if self.kind == "frozen" else self.node).get("shuffle"))

    def nodes(self) -> dict[str, Config]:
        """The networks' nodes by name."""
        return {member.name: member.node for member in self.members}

    def with_members(self, nodes: Mapping[str, Config]) -> Config:
        """The teacher's node with the nodes of its networks replaced."""
        if self.kind in ("none", "online"):
            return self.node
        return nodes[""] if self.kind == "frozen" else {**self.node, "members": dict(nodes)}

    def ensemble_options(self) -> dict[str, Any]:
        """An ensemble's node without the keys in :data:`NOT_OPTIONS`."""
        return {key: value for key, value in self.node.items() if key not in NOT_OPTIONS}

    def min_accuracies(self) -> dict[str, float | None]:
        """The minimum accuracy of the teacher, under ``""``, and of each member; None if it is not set."""
        if self.online:
            return {"": None}
        members = {member.name: member.options().get("min_accuracy") for member in self.members}
        return {"": self.node.get("min_accuracy"), **members}


def without_weights(node: Config, key: str) -> dict[str, Any]:
    """A network's node without its weight file; ``key`` is its configuration key."""
    network, options = split(node, key, prepare)
    return network | {option: value for option, value in options.items() if option not in WEIGHTS}
