"""Bytes of lines and frames to messages, and back; nothing here reads or writes anything.

    spans            cuts a JSON object into the texts of its members, unchanged
    lines            splits a stream of chunks into lines and raw bytes
    node_lines       messages between a client and its nodes (the client's side)
    scheduler_lines  messages between a coordinator and a scheduler (the coordinator's side)
    replica_frames   messages between replicas: a JSON header and raw parts
    long_lines       takes the values out of very long lines of nodes

docs/protocol.md is the specification for people who write the other side. Every
reader here takes chunks of any size and either returns messages or raises
`RemoteProtocolError`; after that it must not be used any more.
"""
