"""Runs a program in a new user namespace without mappings, see `user.py`. No part of the package.

Without a program, prints who one is in there.
"""

import ctypes
import os
import sys

_CLONE_NEWUSER = 0x10000000

if __name__ == "__main__":
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER):
        sys.exit(f"the kernel allows none ({os.strerror(ctypes.get_errno())})")
    if len(sys.argv) == 1:
        print(os.geteuid())
    else:
        os.execv(sys.argv[1], sys.argv[1:])
