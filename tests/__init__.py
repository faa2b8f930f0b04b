import os

# Read when the library is imported: no test asks a hub, nor waits for one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
