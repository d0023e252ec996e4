"""What turns the sources of the docs into pages: `python docs/build.py`."""
