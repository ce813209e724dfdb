"""The network shell: HTTP/1.1 on both sides, streams between replicas, the cluster key.

    addresses        "host:port" and back; options of sockets
    deadlines        waiting at most so long
    http_messages    shared by both sides of HTTP: heads, queries, answers, ranges
    keys             the key file; signing requests
    tokens           let people's browsers and curl in, without the key
    gate             who may come in: signatures, replays, Host and Origin
    router           finds the handler for a path
    http_server      the server: an address, and the life of its connections
    http_connection  one of those: receives requests, answers them in order
    http_exchange    one request: judged, completed, asked, answered for
    http_client      the client with its pool of connections
    http_blocking    the same requests without asyncio, for the command line
    streams          frames between replicas, on connections that heal themselves

Nothing here knows tasks or ballots. HTTP is parsed by the httptools
library; this package adds what an HTTP parser leaves out.
"""
