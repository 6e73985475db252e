"""Speed and memory, ours beside a peer's in one run: `make bench` (docs/performance.md says what is measured and how)."""
