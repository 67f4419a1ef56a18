"""Checkpoints of a Python program's own wish, by the functions of ckpt.h (libckpt).

    LD_PRELOAD=libckpt.so python3 checkpoint.py      makes a checkpoint half way and ends there
    LD_PRELOAD=libckpt.so python3 =recover           goes on from it
"""

import ctypes
import sys

# The program itself and what is preloaded: without the library the names are not there.
ckpt = ctypes.CDLL(None)
if not hasattr(ckpt, "ckpt_here"):
    sys.exit("no libckpt: LD_PRELOAD=libckpt.so python3 checkpoint.py")
ckpt.ckpt_error.restype = ctypes.c_char_p

calls = []


# Kept in variables as long as the library knows of them: ctypes frees what nothing refers to.
@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def before(_):
    calls.append("before")


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)
def after(how, _):
    calls.append(f"after {how}")


for result in (ckpt.ckpt_on_checkpoint(before, None), ckpt.ckpt_on_resume(after, None)):
    if result < 0:
        sys.exit(ckpt.ckpt_error().decode())

total = 0
for step in range(100):
    # Nothing of this is torn apart by a checkpoint that somebody asks for meanwhile.
    ckpt.ckpt_disable()
    total += step
    ckpt.ckpt_enable()
    if step == 50:
        life = ckpt.ckpt_here()
        if life < 0:
            sys.exit(f"no checkpoint: {ckpt.ckpt_error().decode()}")
        if life == 0:
            print("saved in step", step, calls, flush=True)
            sys.exit(3)

assert total == 4950 and calls == ["before", "after 1"], (total, calls)
print("PASS", flush=True)
