"""Files that lie, climb, swell or run: refused in one line, in bounded time and memory, with nothing touched."""
