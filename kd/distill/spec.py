"""What a configuration says of the teacher, parsed in one place."""

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
AROUND = ("members", "min_accuracy", "shuffle", "trainer")  # of an ensemble's node, beside its own options


@dataclass(frozen=True)
class MemberSpec:
    """One network of a teacher.

    Attributes:
        name: ``""`` of a single teacher.
        key: its place in the configuration, for messages.
        node: the configuration of its network with the options of the teacher.
    """

    name: str
    key: str
    node: Config

    def options(self) -> dict[str, Any]:
        """The options of :class:`TeacherOptions` and :func:`prepare` that the node sets.

        Raises:
            InputError: a network with a parameter ``checkpoint`` of its own, which is ambiguous.
        """
        if "checkpoint" in parameters_of(self.node, self.key):
            raise InputError(
                f"{self.key}: {self.node['_target_']} has a parameter `checkpoint`, and so has every teacher, for the "
                "weights that kd reads; rename the function's"
            )
        return split(self.node, self.key, prepare, TeacherOptions)[1]

    def without_weights(self) -> dict[str, Any]:
        """The node without the file of its weights."""
        return without_weights(self.node, self.key)


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher's configuration node.

    Attributes:
        kind: ``frozen``, one network; ``ensemble``, several; ``online``, one that changes with the student.
        members: its networks; of mutual learning the peers, of a moving average none.
        node: as it is configured.
    """

    kind: Literal["none", "frozen", "ensemble", "online"]
    members: tuple[MemberSpec, ...]
    node: Config

    @classmethod
    def parse(cls, node: Config | None) -> TeacherSpec:
        """From a configuration's ``teacher``.

        Raises:
            InputError: peers that are not networks.
        """
        if not node or not node.get("_target_"):
            return cls("none", (), node or {})
        peers = nodes_of(node["peers"]) if "peers" in node else {}
        if current(node["_target_"]) in DISTILLERS:
            members = [MemberSpec(name, f"teacher.peers.{name}", peer) for name, peer in peers.items()]
            return cls("online", tuple(members), node)
        if "members" in node:
            named = [MemberSpec(name, f"teacher.members.{name}", each) for name, each in node["members"].items()]
            return cls("ensemble", tuple(named), node)
        return cls("frozen", (MemberSpec("", "teacher", node),), node)

    @property
    def online(self) -> bool:
        """Whether it changes with the student."""
        return self.kind == "online"

    @property
    def display_name(self) -> str:
        """What it is called in tables: an ensemble by its members; ``""`` where there is none."""
        return "+".join(member.name or name_of(member.node) for member in self.members)

    @property
    def shuffle(self) -> bool:
        """Whether, as a control, each training sample gets the teacher's output for another one."""
        return bool((self.members[0].options() if self.kind == "frozen" else self.node).get("shuffle"))

    def nodes(self) -> dict[str, Config]:
        """The networks' nodes by name."""
        return {member.name: member.node for member in self.members}

    def with_members(self, nodes: Mapping[str, Config]) -> Config:
        """The teacher's node with other nodes for its networks."""
        if self.kind in ("none", "online"):
            return self.node
        return nodes[""] if self.kind == "frozen" else {**self.node, "members": dict(nodes)}

    def ensemble_options(self) -> dict[str, Any]:
        """The node of an ensemble without what kd reads itself."""
        return {key: value for key, value in self.node.items() if key not in AROUND}

    def min_accuracies(self) -> dict[str, float | None]:
        """The least accuracy asked of the teacher, under ``""``, and of each member; None where none is set."""
        if self.online:
            return {"": None}
        members = {member.name: member.options().get("min_accuracy") for member in self.members}
        return {"": self.node.get("min_accuracy"), **members}


def without_weights(node: Config, key: str) -> dict[str, Any]:
    """A network's node without the file of its weights; ``key`` is its place in the configuration."""
    network, options = split(node, key, prepare)
    return network | {option: value for option, value in options.items() if option not in WEIGHTS}
