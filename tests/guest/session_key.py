"""session_key.py COMMAND...: becomes COMMAND with a key in a new session keyring.
session_key.py: prints `found` if it has that key, else `hidden`."""
import ctypes, os, sys

SYS_ADD_KEY, SYS_KEYCTL = (248, 250) if os.uname().machine == "x86_64" else (217, 219)
JOIN_SESSION_KEYRING, SEARCH = 1, 10
SESSION_KEYRING = -3
libc = ctypes.CDLL(None)

if len(sys.argv) > 1:
    libc.syscall(SYS_KEYCTL, JOIN_SESSION_KEYRING, None)
    libc.syscall(SYS_ADD_KEY, b"user", b"rnet-test", b"secret", 6, SESSION_KEYRING)
    os.execv(sys.argv[1], sys.argv[1:])
found = libc.syscall(SYS_KEYCTL, SEARCH, SESSION_KEYRING, b"user", b"rnet-test", 0)
print("found" if found > 0 else "hidden")
