"""Serves one client on PORT: sends until there is no more room on the way, says how much that was, and ends.

last_words.py PORT
"""
import select, socket, sys

listener = socket.create_server(("", int(sys.argv[1])))
print("ready", flush=True)
client, _ = listener.accept()
print("accepted", flush=True)
listener.close()
client.setblocking(False)
sent, chunk = 0, b"w" * 65536
# What moves no byte for so long is full.
while select.select([], [client], [], 0.5)[1]:
    sent += client.send(chunk)
print(sent, flush=True)
