"""Bytes of lines and frames to messages, and back; nothing here reads or writes anything.

    spans            cuts a JSON object into the texts of its members, unchanged
    lines            splits a stream of chunks into lines and raw bytes
    node_lines       what a client and its nodes say to each other (the client's side)
    scheduler_lines  what a coordinator and a scheduler say to each other (the coordinator's side)
    replica_frames   what replicas say to each other: a JSON header and raw parts

docs/protocol.md is the specification for those who write the other side. Every
reader here takes chunks of any size and either returns messages or raises
`RemoteProtocolError`; after that it must not be used any more.
"""

from __future__ import annotations

__all__: list[str] = []
